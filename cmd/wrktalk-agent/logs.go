package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// logsCommand is `wrktalk-agent logs`.
func logsCommand(a *app) *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use: "logs [TASK]", Short: "show what Helm or Compose says about a task; --follow while it says it", Args: arguments(0, 1),
		Example: "  wrktalk-agent logs -f            # the task in flight\n  wrktalk-agent logs 1397f0f1",
		RunE: func(_ *cobra.Command, args []string) error {
			return a.logs(strings.Join(args, ""), follow)
		},
	}
	a.outputFlag(c)
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the task has ended, and show how")
	return c
}

func (a *app) logs(name string, follow bool) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	dir, err := operator.OpenStaging(cfg.Staging.Dir)
	if err == nil {
		defer dir.Close()
		var t *staging.Task
		if t, err = operator.FindLocal(dir, name); err == nil {
			return a.localLogs(ctx, cfg, dir, t, follow)
		}
	}
	var unclear *operator.NameError
	if errors.As(err, &unclear) {
		return err
	}
	past, pastErr := client(cfg, nil).FindPast(name)
	if pastErr == nil {
		return a.pastLogs(past)
	}
	if errors.As(pastErr, &unclear) {
		return pastErr
	}
	if !errors.Is(err, fs.ErrNotExist) { // the log may be here, and not for this user to see
		fmt.Fprintf(a.stderr, "%s: %v; this is what the database has\n", a.prefix(), err)
	}
	err = a.remoteLogs(ctx, cfg, dir, name, follow)
	if runs, pastErr := client(cfg, nil).History(); err != nil && name == "" && pastErr == nil && len(runs) > 0 {
		fmt.Fprintf(a.stderr, "%s: %v; this is the newest run that this host keeps\n", a.prefix(), err)
		return a.pastLogs(runs[0])
	}
	return err
}

// localLogs shows the log of a task whose directory lies here. The database
// need not answer for that.
func (a *app) localLogs(ctx context.Context, cfg *config.Config, dir *staging.Dir, t *staging.Task, follow bool) error {
	var log strings.Builder
	out := a.stdout
	if a.output == "json" {
		out = &log
	}
	l, err := operator.NewTail(dir, t, out)
	if err != nil {
		return err
	}
	defer l.Close()
	printDocument := func() error {
		d := operator.LocalTaskLog(t)
		d.Log = log.String()
		return a.printJSON(d)
	}
	if !follow {
		if err := l.Copy(); err != nil && !errors.Is(err, operator.ErrShredded) {
			return err
		}
		if a.output == "json" {
			return printDocument()
		}
		if l.Empty() {
			fmt.Fprintf(a.stderr, "task %s is in %s: nothing has been said about it yet\n", t.Name, t.State)
		}
		return nil
	}
	m, _ := t.Manifest()
	o, err := l.Follow(ctx)
	switch {
	case err == nil && a.output == "json":
		return printDocument()
	case err == nil:
		fmt.Fprintln(a.stdout, operator.OutcomeText(o))
		return nil
	case ctx.Err() != nil:
		return nil // a person has seen enough
	case errors.Is(err, operator.ErrShredded) && m != nil:
		return a.withClient(ctx, cfg, func(c *operator.Client) error {
			row, err := c.FindTask(ctx, string(m.TaskID))
			if err != nil {
				return err
			}
			return a.recordedLogs(ctx, c, row)
		})
	}
	return err
}

// withClient calls do with the database of cfg open.
func (a *app) withClient(ctx context.Context, cfg *config.Config, do func(*operator.Client) error) error {
	db, err := a.database(ctx, cfg)
	if err != nil {
		return err
	}
	defer db.Close()
	return do(client(cfg, db))
}

// remoteLogs shows what is known about a task that has no directory here; no
// name is the one in progress, else the newest. With follow, one that waits is
// awaited and one in progress followed to its end.
func (a *app) remoteLogs(ctx context.Context, cfg *config.Config, dir *staging.Dir, name string, follow bool) error {
	return a.withClient(ctx, cfg, func(c *operator.Client) error {
		var row taskdb.TaskRow
		var err error
		if name == "" {
			row, err = c.NewestTask(ctx)
		} else {
			row, err = c.FindTask(ctx, name)
		}
		if err != nil {
			return err
		}
		if row.Status == task.StatusPending && follow {
			fmt.Fprintf(a.stderr, "task %s is pending; waiting for it\n", row.ID)
		}
		t, row, err := c.AwaitDirectory(ctx, dir, row, follow)
		switch {
		case ctx.Err() != nil:
			return nil // a person has seen enough
		case err != nil:
			return err
		case t != nil:
			return a.localLogs(ctx, cfg, dir, t, follow)
		case row.Status == task.StatusInProgress && follow:
			return a.followRemote(ctx, c, row)
		}
		return a.recordedLogs(ctx, c, row)
	})
}

// followRemote shows the phases of a task in progress on another host, or in a
// directory that may not be read, as the database has them, to its end.
func (a *app) followRemote(ctx context.Context, c *operator.Client, row taskdb.TaskRow) error {
	fmt.Fprintf(a.stderr, "task %s is in progress out of reach from here, and its log with it; following it in the database\n", row.ID)
	if v, err := c.DB.Migrated(ctx); err == nil && v == 0 {
		fmt.Fprintln(a.stderr, "its phases are not recorded there: wrktalk-agent migrate brings that")
	}
	p := a.progress()
	row, err := c.Follow(ctx, row.ID, p)
	p.clear()
	switch {
	case ctx.Err() != nil:
		return nil // a person has seen enough
	case err != nil:
		return err
	case a.output == "json":
		return a.recordedLogs(ctx, c, row)
	}
	a.printEnd(row)
	return nil
}

// recordedLogs shows what the database keeps of a task without a directory here.
func (a *app) recordedLogs(ctx context.Context, c *operator.Client, row taskdb.TaskRow) error {
	if past, err := c.FindPast(string(row.ID)); err == nil { // it ended meanwhile, or was not named
		return a.pastLogs(past)
	}
	l, err := c.RecordedTaskLog(ctx, row)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(l)
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
	for _, e := range l.Events {
		fmt.Fprintln(a.stdout, eventText(e))
	}
	if row.Status.Final() {
		a.printEnd(row)
	}
	return nil
}

// eventText is an event as a line.
func eventText(e task.Event) string {
	return fmt.Sprintf("%s  %-9s %-11s  %s", e.Time.Local().Format("15:04:05.0"), e.Component, e.Phase, e.Text)
}
