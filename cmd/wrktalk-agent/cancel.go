package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/signal"
	"slices"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// cancellation is one call of `wrktalk-agent cancel`.
type cancellation struct {
	a      *app
	cfg    *config.Config
	db     *taskdb.DB
	reason string
	force  bool
	report cancelReport
}

// What a call of cancel did.
const (
	cancelEnded = "cancelled" // it had not begun, and never will
	cancelAsked = "asked"     // the agent that works on it is to give it up
	cancelForce = "forced"    // the row was ended over the agent's head
)

// cancelReport is what `cancel --output json` prints.
type cancelReport struct {
	ID      task.ID         `json:"id"`
	Did     string          `json:"did"`
	Message string          `json:"message"`
	Task    *taskdb.TaskRow `json:"task,omitempty"` // with --wait: the row at its end
}

// say tells what was done.
func (c *cancellation) say(id task.ID, did, format string, args ...any) {
	c.report = cancelReport{ID: id, Did: did, Message: fmt.Sprintf(format, args...)}
	if c.a.output != "json" {
		fmt.Fprintln(c.a.stdout, c.report.Message)
	}
}

// runCancel is `wrktalk-agent cancel`.
func runCancel(a *app, args []string) error {
	fset := a.flags()
	a.outputFlag(fset)
	reason := fset.String("reason", "", "say why, in `words` for the result and the mail")
	force := fset.Bool("force", false, "end a task in progress in the database alone, when no agent is left to do it: nothing is restored, nobody is mailed")
	wait := fset.Bool("wait", false, "wait until the task has ended; exit code 1 when it completed all the same")
	rest, err := a.parse(fset, args, 1, 1)
	if err != nil {
		return err
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
	c := &cancellation{a: a, cfg: cfg, db: db, reason: task.SafeText(*reason, 500), force: *force}
	id, err := c.ask(ctx, rest[0])
	if err != nil {
		return err
	}
	if !*wait {
		if a.output == "json" {
			return a.printJSON(c.report)
		}
		return nil
	}
	f := a.follower(db, cfg, id)
	row, err := f.run(ctx)
	f.clear()
	if err != nil {
		return err
	}
	if a.output == "json" {
		c.report.Task = &row
		if err := a.printJSON(c.report); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(a.stdout, verdict(row))
	}
	if row.Status == task.StatusCompleted {
		return fmt.Errorf("task %s completed before it could be cancelled: see wrktalk-agent rollback", id)
	}
	return nil
}

// ask cancels the task that name means, in the way its state allows, and
// returns its id.
func (c *cancellation) ask(ctx context.Context, name string) (task.ID, error) {
	if !c.force {
		// A task in flight here is asked here: then the database may be down.
		id, done, err := c.here(name)
		if done || err != nil {
			return id, err
		}
	}
	row, err := findRow(ctx, c.db, name)
	if err != nil {
		return "", err
	}
	if row.Status == task.StatusPending {
		ended, err := c.db.EndPending(ctx, c.outcome(row, "cancelled by an operator before it began"))
		if err != nil {
			return "", err
		}
		if ended {
			c.say(row.ID, cancelEnded, "cancelled task %s (%s of %s): it had not begun", row.ID, row.Kind, orDash(row.ReleaseVersion))
			return row.ID, nil
		}
		if row, err = c.db.Task(ctx, row.ID); err != nil { // somebody was faster
			return "", err
		}
	}
	switch {
	case row.Status.Final():
		return "", fmt.Errorf("task %s has ended already: %s", row.ID, verdict(row))
	case c.force:
		return row.ID, c.end(ctx, row)
	default:
		return row.ID, c.elsewhere(ctx, row)
	}
}

// here asks the runner of this host, if the task is in flight on it.
func (c *cancellation) here(name string) (id task.ID, done bool, err error) {
	dir, err := openStaging(c.cfg.Staging.Dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return "", false, nil // no agent of this host; or not ours to see: the database tells
	}
	if err != nil {
		return "", false, err
	}
	defer dir.Close()
	t, err := findLocal(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	m, err := t.Manifest()
	if err != nil || !slices.Contains(inFlight, t.State) {
		return "", false, nil
	}
	if o, err := t.Outcome(); err == nil {
		return "", true, fmt.Errorf("task %s has ended already: %s", m.TaskID, outcomeText(o))
	}
	if err := t.RequestCancel(c.reason); err != nil {
		if errors.Is(err, fs.ErrNotExist) { // it moved on between two looks
			return "", false, nil
		}
		return "", true, err
	}
	what := "asked the runner to give task %s up; what served before is restored"
	if held, err := dir.Held(staging.Runner); err == nil && !held {
		what += "\nno runner is running here: it does so when it starts"
	}
	c.say(m.TaskID, cancelAsked, what, m.TaskID)
	return m.TaskID, true, nil
}

// elsewhere asks the runner of another host, through the database.
func (c *cancellation) elsewhere(ctx context.Context, row taskdb.TaskRow) error {
	err := c.db.RequestCancel(ctx, row.ID, row.Token, c.reason)
	if errors.Is(err, taskdb.ErrNotMigrated) {
		return fmt.Errorf("task %s is not in flight in %s: run this on the agent's host as its user, or run wrktalk-agent migrate once to reach agents from anywhere; --force ends the row and restores nothing",
			row.ID, c.cfg.Staging.Dir)
	}
	if err != nil {
		return err
	}
	c.say(row.ID, cancelAsked, "asked the agent that carries task %s out to give it up; what served before is restored", row.ID)
	return nil
}

// end ends the row of a task whose agent is gone.
func (c *cancellation) end(ctx context.Context, row taskdb.TaskRow) error {
	ended, err := c.db.EndInProgress(ctx, c.outcome(row, "ended by an operator while in progress: look at what serves now"))
	if err != nil {
		return err
	}
	if !ended {
		return fmt.Errorf("task %s was taken over or ended meanwhile: see wrktalk-agent status", row.ID)
	}
	c.say(row.ID, cancelForce, "ended task %s in the database; an agent that still works on it stops within agent.heartbeat_interval and restores nothing: look at what serves now", row.ID)
	return nil
}

// outcome is what is recorded about a task that no runner ends.
func (c *cancellation) outcome(row taskdb.TaskRow, text string) task.Outcome {
	if c.reason != "" {
		text += " (" + c.reason + ")"
	}
	return task.Outcome{
		TaskID: row.ID, Kind: row.Kind, Token: row.Token, ReleaseVersion: row.ReleaseVersion,
		Message: "The task was cancelled", Error: text,
	}
}
