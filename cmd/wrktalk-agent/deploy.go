package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// runDeploy is `wrktalk-agent deploy`.
func runDeploy(a *app, args []string) error { return a.ask(args, task.KindDeploy, 1) }

// runRollback is `wrktalk-agent rollback`.
func runRollback(a *app, args []string) error { return a.ask(args, task.KindRollback, 0) }

// ask adds a task of the given kind and, with --wait, follows it to its end.
func (a *app) ask(args []string, kind task.Kind, least int) error {
	fs := a.flags()
	a.outputFlag(fs)
	at := fs.String("at", "", "not before this `time`: 2026-11-23T22:00:00Z, 2026-11-23 22:00, 22:00 or +30m")
	wait := fs.Bool("wait", false, "follow the task to its end; exit code 1 when it fails")
	offline, env := new(bool), new(string)
	if kind == task.KindRollback {
		offline = fs.Bool("offline", false, "do without the database, which is told of it later: on the agent's host, from what is kept there")
		env = fs.String("env", "", "with --offline, the .env `file` that the release needs (Compose)")
	}
	rest, err := a.parse(fs, args, least, 1)
	if err != nil {
		return err
	}
	switch {
	case *offline && *at != "":
		return usagef("--offline and --at exclude each other: what waits for a time is kept in the database")
	case *offline:
		return a.rollbackOffline(rest, *env, *wait)
	case *env != "":
		return usagef("--env goes with --offline: otherwise the env comes from the database")
	}
	t := taskdb.NewTask{Kind: kind}
	if *at != "" {
		due, err := parseTime(*at, time.Now())
		if err != nil {
			return usageError{err}
		}
		t.At = &due
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	db, err := a.database(ctx, cfg)
	if err != nil {
		return usageError{err}
	}
	defer db.Close()
	version := "the previous release"
	if len(rest) > 0 {
		artifact, err := findArtifact(ctx, db, cfg, rest[0])
		if err != nil {
			return err
		}
		t.ArtifactID, version = &artifact.ID, artifact.Version
	}
	id, err := db.AddTask(ctx, t)
	if err != nil {
		return err
	}
	if *wait {
		return a.follow(ctx, db, cfg, id, version)
	}
	if a.output == "json" {
		return a.printTask(ctx, db, id)
	}
	when := ""
	if t.At != nil {
		when = ", due at " + t.At.Local().Format("2006-01-02 15:04:05 MST")
	}
	fmt.Fprintf(a.stdout, "asked for %s of %s: task %s%s\n", kind, version, id, when)
	return nil
}

// findArtifact finds the release a person named by version.
func findArtifact(ctx context.Context, db *taskdb.DB, cfg *config.Config, version string) (*taskdb.Artifact, error) {
	chart := cfg.Agent.DeploymentType.ChartType()
	a, err := db.ArtifactByVersion(ctx, chart, version)
	if errors.Is(err, taskdb.ErrNotFound) {
		return nil, fmt.Errorf("the database holds no %s release of version %q: store it with wrktalk-agent push FILE --version %s", chart, version, version)
	}
	return a, err
}

func (a *app) printTask(ctx context.Context, db *taskdb.DB, id task.ID) error {
	row, err := db.Task(ctx, id)
	if err != nil {
		return err
	}
	return a.printJSON(row)
}

// parseTime understands what people type for a time; what names no zone is
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
