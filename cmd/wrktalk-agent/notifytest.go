package main

import (
	"context"
	"fmt"

	"github.com/wrktalk/wrktalk-agent/notifier"
)

// runNotifyTest is `wrktalk-agent notify-test`.
func runNotifyTest(a *app, args []string) error {
	fs := a.flags()
	a.outputFlag(fs)
	rest, err := a.parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	ctx := context.Background()
	db, err := a.database(ctx, cfg)
	if err != nil {
		return usageError{err}
	}
	defer db.Close()
	settings, err := newBook(db, cfg).MailSettings(ctx)
	if err != nil {
		return err
	}
	if err := notifier.SendTest(ctx, settings, transport(cfg), origin(cfg), rest[0]); err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{"accepted": true, "server": settings.Host, "recipient": rest[0]})
	}
	fmt.Fprintf(a.stdout, "%s accepted a test mail to %s\n", settings.Host, rest[0])
	return nil
}
