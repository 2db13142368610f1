package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/version"
)

// versionCommand is `wrktalk-agent version`.
func versionCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "version", Short: "show the version", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			v := version.Get()
			if a.output == "json" {
				return a.printJSON(v)
			}
			_, err := fmt.Fprintf(a.stdout, "wrktalk-agent %s (%s, %s/%s)\n", v.Version, v.Go, v.OS, v.Arch)
			return err
		},
	}
	a.outputFlag(c)
	return c
}
