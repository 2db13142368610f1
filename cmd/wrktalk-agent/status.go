package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// statusCommand is `wrktalk-agent status`.
func statusCommand(a *app) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "status", Short: "show what serves, what runs, what waits and what came of the last tasks", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			return a.withDatabase(func(ctx context.Context, db *taskdb.DB, cfg *config.Config) error {
				if watch {
					return a.watchStatus(ctx, db, cfg)
				}
				_, err := a.status(ctx, db, cfg, "")
				if err != nil && a.output != "json" {
					a.lastRuns(cfg)
				}
				return err
			})
		},
	}
	a.outputFlag(c)
	c.Flags().BoolVar(&watch, "watch", false, "show it again whenever something changes, until interrupted")
	return c
}

// watchStatus shows the state whenever it changes, until ctx ends. It outlives
// a database that is away for a while.
func (a *app) watchStatus(ctx context.Context, db *taskdb.DB, cfg *config.Config) (err error) {
	shown, lost := "", false
	for {
		switch shown, err = a.status(ctx, db, cfg, shown); {
		case err == nil:
			lost = false
		case ctx.Err() != nil:
		case !taskdb.Transient(err):
			return err
		case !lost:
			fmt.Fprintf(a.stderr, "%s: %s; trying again\n", a.prefix(), operator.Explain(err))
			// What comes next is shown even if it reads like what was shown before.
			shown, lost = " ", true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// status prints the state once, unless it reads like shown, and returns it as
// printed.
func (a *app) status(ctx context.Context, db *taskdb.DB, cfg *config.Config, shown string) (string, error) {
	s, err := client(cfg, db).Status(ctx)
	if err != nil {
		return shown, err
	}
	var b strings.Builder
	if a.output == "json" {
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		if err := enc.Encode(s); err != nil {
			return shown, err
		}
	} else {
		printStatus(&b, s, cfg)
	}
	if b.String() == shown {
		return shown, nil
	}
	if shown != "" && isTerminal(a.stdout) {
		fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
	}
	_, err = fmt.Fprint(a.stdout, b.String())
	return b.String(), err
}
