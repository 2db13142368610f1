package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// migration is what `migrate --output json` prints.
type migration struct {
	Created bool `json:"created"`        // the WrkTalk tables, just now
	Version int  `json:"schema_version"` // of the agent's own schema; 0 without it
	// GrantedTo are the roles, besides the one that migrated, that may use it.
	GrantedTo []string `json:"granted_to,omitempty"`
	// Announced is whether announcements of tasks arrive over connections such as
	// this one; false behind a pooler that shares them.
	Announced bool `json:"announced"`
}

// migrateCommand is `wrktalk-agent migrate`.
func migrateCommand(a *app) *cobra.Command {
	var create, down bool
	var grantTo []string
	c := &cobra.Command{
		Use: "migrate", Short: "add the agent's own schema; --create for an empty database, --down to remove", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			if create && down {
				return usagef("--create and --down exclude each other")
			}
			return a.migrate(create, down, grantTo)
		},
	}
	a.outputFlag(c)
	c.Flags().BoolVar(&create, "create", false, "first create the WrkTalk tables, in a database that has none")
	c.Flags().BoolVar(&down, "down", false, "remove what migrate added, and nothing else")
	c.Flags().StringArrayVar(&grantTo, "grant-to", nil, "database `role` that agents log in as; every role that may change agent_task.status gets the rights without")
	return c
}

func (a *app) migrate(create, down bool, grantTo []string) error {
	ctx := context.Background()
	cfg, db, err := a.configured(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	if down {
		if err := db.Down(ctx); err != nil {
			return err
		}
		if a.output == "json" {
			return a.printJSON(migration{})
		}
		fmt.Fprintln(a.stdout, "removed the agent's schema; tasks are found by polling from now on")
		return nil
	}
	if create {
		if err := db.CreateSchema(ctx); err != nil {
			return err
		}
		if a.output != "json" {
			fmt.Fprintln(a.stdout, "created the WrkTalk tables")
		}
	}
	granted, err := db.MigrateFor(ctx, grantTo...)
	if err != nil {
		return err
	}
	unheard := db.Announced(ctx)
	if unheard != nil && !errors.Is(unheard, taskdb.ErrUnheard) {
		return unheard
	}
	if a.output == "json" {
		return a.printJSON(migration{Created: create, Version: taskdb.SchemaVersion, GrantedTo: granted, Announced: unheard == nil})
	}
	if len(granted) > 0 {
		fmt.Fprintf(a.stdout, "the agent's schema may be used by %s\n", strings.Join(granted, ", "))
	}
	if unheard != nil {
		fmt.Fprintf(a.stdout, "the agent's schema is in place, but %s: an agent that connects like this goes on finding tasks by polling every %s\n",
			taskdb.ErrUnheard, cfg.Agent.PollInterval)
		return nil
	}
	fmt.Fprintln(a.stdout, "the agent's schema is in place; new tasks are announced to the agent at once")
	return nil
}
