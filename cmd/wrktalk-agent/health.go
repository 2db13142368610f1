package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// healthCommand is `wrktalk-agent health`.
func healthCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "health", Short: "say whether the agent on this host is healthy, for health checks of containers", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			ctx, stop := interruptible()
			defer stop()
			text, err := client(cfg, nil).Health(ctx)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, text)
			return err
		},
	}
}
