package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// forgetCommand is `wrktalk-agent forget`.
func forgetCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "forget TASK", Short: "give up recording an outcome that the database refuses", Args: arguments(1, 1),
		Example: `  sudo -u wrktalk wrktalk-agent forget 1397f0f1`,
		RunE:    func(_ *cobra.Command, args []string) error { return a.forget(args[0]) },
	}
	a.outputFlag(c)
	return c
}

func (a *app) forget(name string) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	id, err := client(cfg, nil).Forget(name)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{"id": id})
	}
	fmt.Fprintf(a.stdout, "the runner gives the record of task %s up within %s, and the mails about it are sent; if its row stays in progress, end it by hand (set status and completed_at), or agents of other hosts take the task over\n",
		id, cfg.Agent.PollInterval)
	return nil
}
