package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// taskFlags are the flags of the commands that create a task.
type taskFlags struct {
	at   string
	wait bool
}

func (f *taskFlags) register(a *app, c *cobra.Command) {
	a.outputFlag(c)
	c.Flags().StringVar(&f.at, "at", "", "not before this `time`: 2026-11-23T22:00:00Z, 2026-11-23 22:00, 22:00 or +30m")
	c.Flags().BoolVar(&f.wait, "wait", false, "follow the task to its end; exit code 1 when it fails")
}

// deployCommand is `wrktalk-agent deploy`.
func deployCommand(a *app) *cobra.Command {
	var flags taskFlags
	c := &cobra.Command{
		Use: "deploy VERSION", Short: "ask for a release to be deployed; --wait follows it", Args: arguments(1, 1),
		Example: "  wrktalk-agent deploy 2.5.0 --wait\n  wrktalk-agent deploy 2.5.0 --at 22:00",
		RunE: func(_ *cobra.Command, args []string) error {
			return a.createTask(task.KindDeploy, args[0], flags)
		},
	}
	flags.register(a, c)
	return c
}

// createTask adds a task of the given kind and, with --wait, follows it to its
// end. No version is the previous release.
func (a *app) createTask(kind task.Kind, version string, flags taskFlags) error {
	t := taskdb.NewTask{Kind: kind}
	if flags.at != "" {
		now := time.Now()
		due, err := parseTime(flags.at, now)
		if err != nil {
			return usageError{err}
		}
		if due.Before(now.Add(-time.Minute)) { // a time given to the minute is of this minute
			return usagef("--at %s is in the past (it is %s now): leave --at out to begin at once, or give a time to come",
				due.Local().Format("2006-01-02 15:04:05 MST"), now.Format("15:04:05"))
		}
		t.At = &due
	}
	return a.withDatabase(func(ctx context.Context, db *taskdb.DB, cfg *config.Config) error {
		return a.addTask(ctx, db, cfg, t, version, flags.wait)
	})
}

// addTask adds t, for the release that a person named by version, and with wait
// follows it to its end.
func (a *app) addTask(ctx context.Context, db *taskdb.DB, cfg *config.Config, t taskdb.NewTask, version string, wait bool) error {
	if version == "" {
		if err := client(cfg, db).CheckRollback(ctx); err != nil {
			return err
		}
		version = "the previous release"
	} else {
		artifact, err := client(cfg, db).FindVersion(ctx, version)
		if err != nil {
			return err
		}
		t.ArtifactID, version = &artifact.ID, artifact.Version
	}
	id, err := db.AddTask(ctx, t)
	if err != nil {
		return err
	}
	if wait {
		return a.follow(ctx, client(cfg, db), id, version)
	}
	if a.output == "json" {
		row, err := db.Task(ctx, id)
		if err != nil {
			return err
		}
		return a.printJSON(row)
	}
	when := ""
	if t.At != nil {
		when = ", due at " + t.At.Local().Format("2006-01-02 15:04:05 MST")
	}
	fmt.Fprintf(a.stdout, "asked for %s of %s: task %s%s\n", t.Kind, version, id, when)
	return nil
}

// parseTime understands what people type for a time. A time without a zone is
// local, and a time of day without a date is the next one.
func parseTime(s string, now time.Time) (time.Time, error) {
	if after, ok := strings.CutPrefix(s, "+"); ok {
		d, err := time.ParseDuration(after)
		if err == nil && d >= 0 {
			return now.Add(d), nil
		}
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	if t, err := time.ParseInLocation("15:04", s, now.Location()); err == nil {
		due := time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), 0, 0, now.Location())
		if due.Before(now) {
			due = due.AddDate(0, 0, 1)
		}
		return due, nil
	}
	return time.Time{}, fmt.Errorf("--at %q is no time: give 2026-11-23T22:00:00Z, 2026-11-23 22:00, 22:00 or +30m", s)
}
