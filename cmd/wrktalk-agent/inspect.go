package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/notifier"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// inspectCommand is `wrktalk-agent inspect`.
func inspectCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "inspect [TASK]", Short: "explain what lies in the staging directory, and who acts next", Args: arguments(0, 1),
		RunE: func(_ *cobra.Command, args []string) error { return a.inspect(strings.Join(args, "")) },
	}
	a.outputFlag(c)
	return c
}

func (a *app) inspect(name string) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	i, err := client(cfg, nil).Inspect(name)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(i)
	}
	return printInspection(a.stdout, i, name != "", time.Now())
}

// readMail returns what the notifier has recorded about a task's messages.
func readMail(t *staging.Task) (*operator.Mail, error) {
	record, err := notifier.ReadDeliveries(t)
	if err != nil {
		return nil, err
	}
	m := &operator.Mail{Record: record, Note: record.Note}
	for _, d := range record.List {
		m.Deliveries = append(m.Deliveries, operator.Delivery{
			Address: d.Address, State: string(d.State), Pending: d.State == notifier.StatePending,
			Attempts: d.Attempts, NextTry: d.NextTry, LastError: d.LastError, UpdatedAt: d.UpdatedAt,
		})
	}
	return m, nil
}
