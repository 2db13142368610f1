package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// configCommand is `wrktalk-agent config`.
func configCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "config", Short: "show every setting, its value and where it comes from", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error { return a.showConfig() },
	}
	a.outputFlag(c)
	return c
}

func (a *app) showConfig() error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings() {
		fmt.Fprintf(a.stderr, "%s: warning: %s\n", a.prefix(), w)
	}
	if a.output == "json" {
		return a.printJSON(cfg.Settings())
	}
	tw := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "KEY\tVALUE\tFROM")
	for _, s := range cfg.Settings() {
		value := s.Value
		if value == "" {
			value = "-"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", s.Key, value, s.Source)
	}
	return tw.Flush()
}
