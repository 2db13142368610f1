package main

import (
	"fmt"

	"github.com/wrktalk/wrktalk-agent/internal/version"
)

// runVersion is `wrktalk-agent version`.
func runVersion(a *app, args []string) error {
	fs := a.flags()
	a.outputFlag(fs)
	if _, err := a.parse(fs, args, 0, 0); err != nil {
		return err
	}
	v := version.Get()
	if a.output == "json" {
		return a.printJSON(v)
	}
	_, err := fmt.Fprintf(a.stdout, "wrktalk-agent %s (%s, %s/%s)\n", v.Version, v.Go, v.OS, v.Arch)
	return err
}
