package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// runLogs is `wrktalk-agent logs`.
func runLogs(a *app, args []string) error {
	fset := a.flags()
	follow := fset.Bool("follow", false, "go on until the task has ended, and show how")
	fset.BoolVar(follow, "f", false, "the same as --follow")
	rest, err := a.parse(fset, args, 0, 1)
	if err != nil {
		return err
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	name := ""
	if len(rest) > 0 {
		name = rest[0]
	}
	dir, err := openStaging(cfg.Staging.Dir)
	if err == nil {
		defer dir.Close()
		var t *staging.Task
		if t, err = findLocal(dir, name); err == nil {
			return a.localLogs(ctx, cfg, dir, t, *follow)
		}
	}
	var usage usageError
	if name == "" || errors.As(err, &usage) {
		return err
	}
	return a.remoteLogs(ctx, cfg, dir, name, *follow)
}

// localLogs shows the log of a task whose directory lies here. The database
// need not answer for that.
func (a *app) localLogs(ctx context.Context, cfg *config.Config, dir *staging.Dir, t *staging.Task, follow bool) error {
	l, err := newTail(dir, t, a.stdout)
	if err != nil {
		return err
	}
	defer l.close()
	m, _ := t.Manifest() // the directory's name says as much
	if !follow {
		if err := l.copy(); err != nil && !errors.Is(err, errShredded) {
			return err
		}
		if l.offset == 0 {
			fmt.Fprintf(a.stderr, "task %s is in %s: nothing has been said about it yet\n", t.Name, t.State)
		}
		return nil
	}
	o, err := l.follow(ctx)
	switch {
	case err == nil:
		fmt.Fprintln(a.stdout, outcomeText(o))
		return nil
	case ctx.Err() != nil:
		return nil // a person has seen enough
	case errors.Is(err, errShredded) && m != nil:
		return a.archive(ctx, cfg, string(m.TaskID))
	}
	return err
}

// outcomeText says in words what came of a task.
func outcomeText(o task.Outcome) string {
	text := fmt.Sprintf("%s of %s %s in %s: %s", o.Kind, orDash(o.ReleaseVersion), o.Status(), o.Duration().Round(10*time.Millisecond), o.Message)
	if o.Error != "" {
		text += ": " + o.Error
	}
	return text
}

// remoteLogs shows what is known about a task that has no directory here. With
// follow, one that waits is awaited.
func (a *app) remoteLogs(ctx context.Context, cfg *config.Config, dir *staging.Dir, name string, follow bool) error {
	db, err := a.database(ctx, cfg)
	if err != nil {
		return usageError{err}
	}
	defer db.Close()
	row, err := findRow(ctx, db, name)
	if err != nil {
		return err
	}
	if row.Status == task.StatusPending && follow {
		fmt.Fprintf(a.stderr, "task %s is pending; waiting for it\n", row.ID)
	}
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for row.Status == task.StatusPending && follow || row.Status == task.StatusInProgress {
		if dir != nil {
			t, err := dir.Find(row.ID)
			switch {
			case err == nil:
				return a.localLogs(ctx, cfg, dir, t, follow)
			case !errors.Is(err, fs.ErrNotExist):
				return err
			}
		}
		if row.Status == task.StatusInProgress {
			break // on another host
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if row, err = db.Task(ctx, row.ID); err != nil {
			return err
		}
	}
	return a.archived(ctx, db, row)
}

// archive is archived for a task whose row is still to be read.
func (a *app) archive(ctx context.Context, cfg *config.Config, name string) error {
	db, err := a.database(ctx, cfg)
	if err != nil {
		return usageError{err}
	}
	defer db.Close()
	row, err := findRow(ctx, db, name)
	if err != nil {
		return err
	}
	return a.archived(ctx, db, row)
}

// archived shows what the database keeps of a task without a directory here.
func (a *app) archived(ctx context.Context, db *taskdb.DB, row taskdb.TaskRow) error {
	switch row.Status {
	case task.StatusPending:
		fmt.Fprintf(a.stderr, "task %s is pending: nothing has been said about it yet\n", row.ID)
		return nil
	case task.StatusInProgress:
		fmt.Fprintf(a.stderr, "task %s is in progress on another host: its log is there; the database has this\n", row.ID)
	default:
		fmt.Fprintf(a.stderr, "the log of task %s is not on this host (any more); the database has this\n", row.ID)
	}
	events, err := timeline(ctx, db, row.ID)
	if err != nil {
		return err
	}
	for _, e := range events {
		fmt.Fprintln(a.stdout, eventText(e))
	}
	if row.Status.Final() {
		fmt.Fprintln(a.stdout, verdict(row))
	}
	return nil
}

// timeline returns a task's timeline from the agent's own schema, by time;
// nothing without that.
func timeline(ctx context.Context, db *taskdb.DB, id task.ID) ([]task.Event, error) {
	var events []task.Event
	for after := int64(0); ; {
		more, err := db.Events(ctx, id, after)
		if err != nil {
			return nil, err
		}
		if len(more) == 0 {
			break
		}
		for _, e := range more {
			events = append(events, e.Event)
		}
		after = more[len(more)-1].Seq
	}
	// Three components write, each in its own order.
	slices.SortStableFunc(events, func(a, b task.Event) int { return a.Time.Compare(b.Time) })
	return events, nil
}

// eventText is an event as a line.
func eventText(e task.Event) string {
	return fmt.Sprintf("%s  %-9s %-11s  %s", e.Time.Local().Format("15:04:05.0"), e.Component, e.Phase, e.Text)
}
