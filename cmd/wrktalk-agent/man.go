//go:build man

// The manual pages are written by a build of their own, so that what formats
// them is no part of the agent.

package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func init() { commands = append(commands, manCommand) }

func manCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "write a manual page for each command into DIR", Args: arguments(1, 1), Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			c.Root().DisableAutoGenTag = true // it would hold the day's date
			return doc.GenManTree(c.Root(), &doc.GenManHeader{Section: "1", Source: "wrktalk-agent"}, args[0])
		},
	}
}
