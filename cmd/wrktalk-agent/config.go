package main

import (
	"fmt"
	"text/tabwriter"
)

// runConfig is `wrktalk-agent config`.
func runConfig(a *app, args []string) error {
	fs := a.flags()
	a.outputFlag(fs)
	if _, err := a.parse(fs, args, 0, 0); err != nil {
		return err
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	a.warn(cfg)
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
