package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/notifier/smtp"
)

// notifyTestCommand is `wrktalk-agent notify-test`.
func notifyTestCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "notify-test ADDRESS", Short: "send a test mail with the settings in the database", Args: arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error { return a.notifyTest(args[0]) },
	}
	a.outputFlag(c)
	return c
}

func (a *app) notifyTest(address string) error {
	ctx := context.Background()
	cfg, db, err := a.configured(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	settings, err := db.MailSettings(ctx, deploymentOf(cfg).target)
	if err != nil {
		return err
	}
	if err := smtp.SendTest(ctx, settings, transport(cfg), origin(cfg), address); err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{"accepted": true, "server": settings.Host, "recipient": address})
	}
	fmt.Fprintf(a.stdout, "%s accepted a test mail to %s\n", settings.Host, address)
	return nil
}
