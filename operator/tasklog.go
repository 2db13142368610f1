package operator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// TaskLog is what was said about a task. Of one whose directory lies here State,
// Log and Outcome tell, of any other one Task, the row.
type TaskLog struct {
	ID      task.ID         `json:"id"`
	State   staging.State   `json:"state,omitempty"`
	Task    *taskdb.TaskRow `json:"task,omitempty"`
	Events  []task.Event    `json:"events"`
	Log     string          `json:"log,omitempty"`
	Outcome *task.Outcome   `json:"outcome,omitempty"`
}

// LocalTaskLog returns what the directory of t holds beside its log, which the
// caller adds.
func LocalTaskLog(t *staging.Task) TaskLog {
	l := TaskLog{State: t.State, Events: []task.Event{}}
	if m, err := t.Manifest(); err == nil { // else the directory's name says as much
		l.ID = m.TaskID
	}
	if events, err := t.Events(); err == nil {
		l.Events = append(l.Events, events...)
	}
	if o, err := t.Outcome(); err == nil {
		l.Outcome = &o
	}
	return l
}

// RecordedTaskLog returns what the database keeps of a task: its row and, in the
// agent's own schema, its timeline, by time.
func (c *Client) RecordedTaskLog(ctx context.Context, row taskdb.TaskRow) (TaskLog, error) {
	l := TaskLog{ID: row.ID, Task: &row, Events: []task.Event{}}
	for after := int64(0); ; {
		more, err := c.DB.Events(ctx, row.ID, after)
		if err != nil {
			return l, err
		}
		if len(more) == 0 {
			break
		}
		for _, e := range more {
			l.Events = append(l.Events, e.Event)
		}
		after = more[len(more)-1].Seq
	}
	// Three components write, each in its own order.
	slices.SortStableFunc(l.Events, func(a, b task.Event) int { return a.Time.Compare(b.Time) })
	return l, nil
}

// NewestTask returns the target's task in progress, else the one that ended
// last, else the one that comes next.
func (c *Client) NewestTask(ctx context.Context) (taskdb.TaskRow, error) {
	s, err := c.DB.Status(ctx, c.Target)
	if err != nil {
		return taskdb.TaskRow{}, err
	}
	for _, rows := range [][]taskdb.TaskRow{s.InProgress, s.Recent, s.Queue} {
		if len(rows) > 0 {
			return rows[0], nil
		}
	}
	return taskdb.TaskRow{}, fmt.Errorf("no task lies in staging directory %s, and the database has none of this target", c.StagingDir)
}

// AwaitDirectory returns the directory in dir, which may be nil, of a task that
// is in progress; with wait, of a pending one as soon as it is taken. It returns
// nil, and the row as last read, when the task has no directory here or has
// ended. A database that is away for a while is waited for.
func (c *Client) AwaitDirectory(ctx context.Context, dir *staging.Dir, row taskdb.TaskRow, wait bool) (*staging.Task, taskdb.TaskRow, error) {
	tick := time.NewTicker(databasePoll)
	defer tick.Stop()
	for row.Status == task.StatusPending && wait || row.Status == task.StatusInProgress {
		if dir != nil {
			t, err := dir.Find(row.ID)
			if !errors.Is(err, fs.ErrNotExist) {
				return t, row, err
			}
		}
		if row.Status == task.StatusInProgress {
			break // on another host
		}
		select {
		case <-ctx.Done():
			return nil, row, ctx.Err()
		case <-tick.C:
		}
		if next, err := c.DB.Task(ctx, row.ID); err == nil {
			row = next
		} else if ctx.Err() == nil && !taskdb.Transient(err) {
			return nil, row, err
		}
	}
	return nil, row, nil
}
