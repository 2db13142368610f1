package operator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// What a call of Cancel did.
const (
	Cancelled = "cancelled" // it had not begun, and never will
	Requested = "asked"     // the agent that works on it is to give it up
	Forced    = "forced"    // the row was ended whatever the agent does
)

// Cancellation is what a call of Cancel came to.
type Cancellation struct {
	ID      task.ID         `json:"id"`
	Did     string          `json:"did"`
	Message string          `json:"message"`
	Task    *taskdb.TaskRow `json:"task,omitempty"` // the row at its end; the caller who waits for that fills it in
}

// canceller is one call of Cancel.
type canceller struct {
	*Client
	reason string
}

// Cancel cancels the task that name means, in the way its state allows: a
// pending one ends, the agent of one in progress is asked to give it up, through
// the staging directory of this host or else the database. With force, the row
// of a task in progress is ended whatever its agent does. A task of this host is
// reached without the database, unless by force.
func (c *Client) Cancel(ctx context.Context, name, reason string, force bool) (Cancellation, error) {
	k := canceller{Client: c, reason: task.SafeText(reason, 500)}
	if !force {
		done, err := k.cancelLocal(name)
		if done.Did != "" || err != nil {
			return done, err
		}
	}
	row, err := c.FindTask(ctx, name)
	if err != nil {
		return Cancellation{}, err
	}
	if row.Status == task.StatusPending {
		ended, err := c.DB.EndPending(ctx, k.outcome(row, "The task was cancelled before it began; nothing was changed", "cancelled by an operator before it began"))
		if err != nil {
			return Cancellation{}, err
		}
		if ended {
			return cancellation(row.ID, Cancelled, "cancelled task %s (%s of %s): it had not begun", row.ID, row.Kind, OrDash(row.ReleaseVersion)), nil
		}
		if row, err = c.DB.Task(ctx, row.ID); err != nil { // somebody was faster
			return Cancellation{}, err
		}
	}
	switch {
	case row.Status.Final():
		return Cancellation{}, fmt.Errorf("task %s has ended already: %s", row.ID, RowText(row))
	case force:
		return k.end(ctx, row)
	default:
		return k.cancelRemote(ctx, row)
	}
}

func cancellation(id task.ID, did, format string, args ...any) Cancellation {
	return Cancellation{ID: id, Did: did, Message: fmt.Sprintf(format, args...)}
}

// cancelLocal asks the runner of this host, if the task is in flight on it.
// Otherwise it does nothing.
func (k canceller) cancelLocal(name string) (Cancellation, error) {
	none := Cancellation{}
	dir, err := OpenStaging(k.StagingDir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return none, nil // no agent of this host; or not ours to see: the database tells
	}
	if err != nil {
		return none, err
	}
	defer dir.Close()
	t, err := FindLocal(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	m, err := t.Manifest()
	if err != nil || !slices.Contains(inFlight, t.State) {
		return none, nil
	}
	if o, err := t.Outcome(); err == nil {
		return none, fmt.Errorf("task %s has ended already: %s", m.TaskID, OutcomeText(o))
	}
	if err := t.RequestCancel(k.reason); err != nil {
		if errors.Is(err, fs.ErrNotExist) { // it moved on meanwhile
			return none, nil
		}
		return none, err
	}
	what := "asked the runner to give task %s up; what served before is restored"
	if runnerIsDown(dir) {
		what += "\nno runner is running here: it does so when it starts"
	}
	return cancellation(m.TaskID, Requested, what, m.TaskID), nil
}

// cancelRemote asks the runner of another host, through the database.
func (k canceller) cancelRemote(ctx context.Context, row taskdb.TaskRow) (Cancellation, error) {
	err := k.DB.RequestCancel(ctx, row.ID, row.Token, k.reason)
	if errors.Is(err, taskdb.ErrNotMigrated) {
		err = fmt.Errorf("task %s is not in flight in %s: run this on the agent's host as its user, or run wrktalk-agent migrate once to reach agents from anywhere; --force ends the row and restores nothing",
			row.ID, k.StagingDir)
	}
	if err != nil {
		return Cancellation{}, err
	}
	return cancellation(row.ID, Requested, "asked the agent that carries task %s out to give it up; what served before is restored", row.ID), nil
}

// end ends the row of a task whose agent is gone.
func (k canceller) end(ctx context.Context, row taskdb.TaskRow) (Cancellation, error) {
	ended, err := k.DB.EndInProgress(ctx, k.outcome(row, "The task was ended in progress, and what serves now is not known", "ended by an operator while in progress: look at what serves now"))
	if err != nil {
		return Cancellation{}, err
	}
	if !ended {
		return Cancellation{}, fmt.Errorf("task %s was taken over or ended meanwhile: see wrktalk-agent status", row.ID)
	}
	return cancellation(row.ID, Forced, "ended task %s in the database; an agent that still works on it stops within agent.heartbeat_interval and restores nothing: look at what serves now", row.ID), nil
}

// outcome is what is recorded about a task that no runner ends.
func (k canceller) outcome(row taskdb.TaskRow, message, text string) task.Outcome {
	if k.reason != "" {
		text += " (" + k.reason + ")"
	}
	return task.Outcome{
		TaskID: row.ID, Kind: row.Kind, Token: row.Token, ReleaseVersion: row.ReleaseVersion,
		Message: message, Error: text,
	}
}
