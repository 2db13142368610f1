package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// account is what `logs --output json` prints. Of a task whose directory lies
// here State, Log and Outcome tell, of any other one Task, the row.
type account struct {
	ID      task.ID         `json:"id"`
	State   staging.State   `json:"state,omitempty"`
	Task    *taskdb.TaskRow `json:"task,omitempty"`
	Events  []task.Event    `json:"events"`
	Log     string          `json:"log,omitempty"`
	Outcome *task.Outcome   `json:"outcome,omitempty"`
}

// runLogs is `wrktalk-agent logs`.
func runLogs(a *app, args []string) error {
	fset := a.flags()
	a.outputFlag(fset)
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
	if errors.As(err, &usage) {
		return err
	}
	if !errors.Is(err, fs.ErrNotExist) { // the log may be here, and not for this user to see
		fmt.Fprintf(a.stderr, "wrktalk-agent %s: %v; this is what the database has\n", a.command.name, err)
	}
	return a.remoteLogs(ctx, cfg, dir, name, *follow)
}

// localLogs shows the log of a task whose directory lies here. The database
// need not answer for that.
func (a *app) localLogs(ctx context.Context, cfg *config.Config, dir *staging.Dir, t *staging.Task, follow bool) error {
	var log strings.Builder
	out := a.stdout
	if a.output == "json" {
		out = &log
	}
	l, err := newTail(dir, t, out)
	if err != nil {
		return err
	}
	defer l.close()
	m, _ := t.Manifest() // the directory's name says as much
	if !follow {
		if err := l.copy(); err != nil && !errors.Is(err, errShredded) {
			return err
		}
		if a.output == "json" {
			return a.printAccount(t, m, log.String())
		}
		if l.offset == 0 {
			fmt.Fprintf(a.stderr, "task %s is in %s: nothing has been said about it yet\n", t.Name, t.State)
		}
		return nil
	}
	o, err := l.follow(ctx)
	switch {
	case err == nil && a.output == "json":
		return a.printAccount(t, m, log.String())
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

// printAccount prints what a task's directory holds.
func (a *app) printAccount(t *staging.Task, m *staging.Manifest, log string) error {
	c := account{State: t.State, Events: []task.Event{}, Log: log}
	if m != nil {
		c.ID = m.TaskID
	}
	if events, err := t.Events(); err == nil {
		c.Events = append(c.Events, events...)
	}
	if o, err := t.Outcome(); err == nil {
		c.Outcome = &o
	}
	return a.printJSON(c)
}

// outcomeText says in words what came of a task.
func outcomeText(o task.Outcome) string {
	text := fmt.Sprintf("%s of %s %s in %s: %s", o.Kind, orDash(o.ReleaseVersion), o.Status(), o.Duration().Round(10*time.Millisecond), o.Message)
	if o.Error != "" {
		text += ": " + o.Error
	}
	return text
}

// remoteLogs shows what is known about a task that has no directory here; no
// name is the one in progress, else the newest. With follow, one that waits is
// awaited and one in progress followed to its end.
func (a *app) remoteLogs(ctx context.Context, cfg *config.Config, dir *staging.Dir, name string, follow bool) error {
	db, err := a.database(ctx, cfg)
	if err != nil {
		return usageError{err}
	}
	defer db.Close()
	var row taskdb.TaskRow
	if name == "" {
		row, err = newestRow(ctx, db, cfg)
	} else {
		row, err = findRow(ctx, db, name)
	}
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
		if next, err := db.Task(ctx, row.ID); err == nil {
			row = next
		} else if ctx.Err() == nil && !taskdb.Transient(err) {
			return err
		}
	}
	if row.Status == task.StatusInProgress && follow {
		return a.followElsewhere(ctx, db, cfg, row)
	}
	return a.archived(ctx, db, row)
}

// newestRow returns the target's task in progress, else the one that ended
// last, else the one that comes next.
func newestRow(ctx context.Context, db *taskdb.DB, cfg *config.Config) (taskdb.TaskRow, error) {
	s, err := db.Status(ctx, target(cfg))
	if err != nil {
		return taskdb.TaskRow{}, err
	}
	for _, rows := range [][]taskdb.TaskRow{s.InProgress, s.Recent, s.Queue} {
		if len(rows) > 0 {
			return rows[0], nil
		}
	}
	return taskdb.TaskRow{}, fmt.Errorf("no task lies in staging directory %s, and the database has none of this target", cfg.Staging.Dir)
}

// followElsewhere shows the phases of a task in progress on another host, or
// in a directory that may not be read, as the database has them, to its end.
func (a *app) followElsewhere(ctx context.Context, db *taskdb.DB, cfg *config.Config, row taskdb.TaskRow) error {
	fmt.Fprintf(a.stderr, "task %s is in progress out of reach from here, and its log with it; following it in the database\n", row.ID)
	if v, err := db.Migrated(ctx); err == nil && v == 0 {
		fmt.Fprintln(a.stderr, "its phases are not recorded there: wrktalk-agent migrate brings that")
	}
	f := a.follower(db, cfg, row.ID)
	row, err := f.run(ctx)
	f.clear()
	switch {
	case ctx.Err() != nil:
		return nil // a person has seen enough
	case err != nil:
		return err
	case a.output == "json":
		return a.archived(ctx, db, row)
	}
	fmt.Fprintln(a.stdout, verdict(row))
	return nil
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
	events, err := timeline(ctx, db, row.ID)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(account{ID: row.ID, Task: &row, Events: append([]task.Event{}, events...)})
	}
	switch row.Status {
	case task.StatusPending:
		fmt.Fprintf(a.stderr, "task %s is pending: nothing has been said about it yet\n", row.ID)
		return nil
	case task.StatusInProgress:
		fmt.Fprintf(a.stderr, "task %s is in progress out of reach from here, and its log with it; the database has this\n", row.ID)
	default:
		fmt.Fprintf(a.stderr, "the log of task %s is not here (any more); the database has this\n", row.ID)
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
