package main

import (
	"context"
	"fmt"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// migration is what `migrate --output json` prints.
type migration struct {
	Created bool `json:"created"`        // the WrkTalk tables, just now
	Version int  `json:"schema_version"` // of the agent's own schema; 0 without it
}

// runMigrate is `wrktalk-agent migrate`.
func runMigrate(a *app, args []string) error {
	fs := a.flags()
	a.outputFlag(fs)
	create := fs.Bool("create", false, "first create the WrkTalk tables, in a database that has none")
	down := fs.Bool("down", false, "remove what migrate added, and nothing else")
	if _, err := a.parse(fs, args, 0, 0); err != nil {
		return err
	}
	if *create && *down {
		return usagef("--create and --down exclude each other")
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
	if *down {
		if err := db.Down(ctx); err != nil {
			return err
		}
		if a.output == "json" {
			return a.printJSON(migration{})
		}
		fmt.Fprintln(a.stdout, "removed the agent's schema; tasks are found by polling from now on")
		return nil
	}
	if *create {
		if err := db.CreateSchema(ctx); err != nil {
			return err
		}
		if a.output != "json" {
			fmt.Fprintln(a.stdout, "created the WrkTalk tables")
		}
	}
	if err := db.Migrate(ctx); err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(migration{Created: *create, Version: taskdb.SchemaVersion})
	}
	fmt.Fprintln(a.stdout, "the agent's schema is in place; new tasks are announced to the agent at once")
	return nil
}
