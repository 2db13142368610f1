package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// keepBundles are the platforms whose releases are kept on the agent's host.
func keepBundles() []platform.Platform {
	return platform.Where(func(p platform.Platform) bool { return p.KeepsBundles })
}

// rollbackCommand is `wrktalk-agent rollback`.
func rollbackCommand(a *app) *cobra.Command {
	var flags taskFlags
	var offline bool
	var env string
	c := &cobra.Command{
		Use: "rollback [VERSION]", Short: "ask for the previous release, or the one named, to serve again", Args: arguments(0, 1),
		Example: "  wrktalk-agent rollback --wait\n  sudo -u wrktalk wrktalk-agent rollback 2.4.0 --offline --env production.env",
		RunE: func(_ *cobra.Command, args []string) error {
			version := strings.Join(args, "")
			switch {
			case offline && flags.at != "":
				return usagef("--offline and --at exclude each other: what waits for a time is kept in the database")
			case offline:
				return a.rollbackOffline(version, env, flags.wait)
			case env != "":
				return usagef("--env goes with --offline: otherwise the env comes from the database")
			}
			return a.createTask(task.KindRollback, version, flags)
		},
	}
	flags.register(a, c)
	c.Flags().BoolVar(&offline, "offline", false, "do without the database, which is told of it later: on the agent's host, from what is kept there")
	c.Flags().StringVar(&env, "env", "", "with --offline, the .env `file` that the release needs ("+platform.Names(keepBundles())+")")
	return c
}

// rollbackOffline is `wrktalk-agent rollback --offline`: it does by hand what the
// fetcher does with a row, and leaves the rest to the runner.
func (a *app) rollbackOffline(version, envFile string, wait bool) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	d := deploymentOf(cfg)
	release, needsEnv, err := operator.RollbackTarget(d.Platform, d.workingDir, version)
	if err != nil {
		return err
	}
	env, err := a.offlineEnv(d, release, envFile, needsEnv)
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	c := client(cfg, nil)
	id, noRunner, err := c.PublishRollback(release, env)
	if err != nil {
		return err
	}
	if a.output != "json" {
		what := "the previous release"
		if release.Version != "" {
			what = "release " + release.Version
		}
		fmt.Fprintf(a.stdout, "asked the runner to roll back to %s without the database: task %s\n", what, id)
		if noRunner {
			fmt.Fprintln(a.stdout, "no runner is running here: it does so when it starts (wrktalk-agent run)")
		}
	}
	if wait {
		return a.followOffline(ctx, c, id)
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{"id": id, "offline": true, "release_version": release.Version})
	}
	return nil
}

// offlineEnv reads the env that the release needs, nil for none, and warns when
// it seems to lack something.
func (a *app) offlineEnv(d deployment, release staging.Release, file string, needs []string) (*string, error) {
	env, err := optionalFile("env", file, taskdb.MaxEnv)
	switch {
	case err != nil:
		return nil, err
	case env != nil && !d.KeepsBundles:
		return nil, usagef("--env is for %s releases: %s keeps the %s of each revision", platform.Names(keepBundles()), d.Name, d.Text.Name)
	case env == nil && len(needs) > 0:
		return nil, usagef("release %s was deployed with an env, which is kept in the database alone: give --env FILE with %s",
			release.Version, strings.Join(needs, ", "))
	case env == nil:
		return nil, nil
	}
	if missing := operator.MissingEnv(*env, needs); len(missing) > 0 {
		fmt.Fprintf(a.stderr, "%s: warning: %s does not seem to set %s, with which release %s was deployed: without, the rollback is refused\n",
			a.prefix(), file, strings.Join(missing, ", "), release.Version)
	}
	return env, nil
}

// followOffline shows the phases of a task that has no row yet until it has an
// outcome, and fails if the task did. When its directory is gone before its
// outcome was seen, that is recorded, and the database tells.
func (a *app) followOffline(ctx context.Context, c *operator.Client, id task.ID) error {
	v := a.progress()
	o, err := c.FollowOffline(ctx, id, v)
	v.clear()
	switch {
	case errors.Is(err, operator.ErrShredded):
		return a.withDatabase(func(ctx context.Context, db *taskdb.DB, _ *config.Config) error {
			row, err := db.Task(ctx, id)
			if err != nil {
				return fmt.Errorf("task %s has ended, and how is not known here: %w", id, err)
			}
			return a.printRow(row)
		})
	case err != nil:
		return err
	}
	if a.output == "json" {
		err = a.printJSON(o)
	} else {
		fmt.Fprintf(a.stdout, "%s; recorded and mailed when the database is there\n", operator.OutcomeText(o))
	}
	if err == nil && !o.Succeeded {
		err = errSilent
	}
	return err
}
