package operator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// The staging directory and the database are polled this often while a task is
// followed.
const (
	stagingPoll  = 100 * time.Millisecond
	databasePoll = 300 * time.Millisecond
)

// Progress is told what happens to a task while it is followed.
type Progress interface {
	// Event is called for each event of the timeline, once, in order of time
	// within each component.
	Event(e task.Event)
	// Waiting is called when the reason why nothing happens yet changes.
	Waiting(why string)
	// Poll is called after each look, ten times a second, with the row's status
	// as it was last read; "" before.
	Poll(status task.Status)
}

// follower follows one task.
type follower struct {
	*Client
	id       task.ID
	progress Progress
	started  time.Time

	reported map[eventKey]bool
	after    int64 // sequence number of the last event read from the database
	status   task.Status
	waiting  string
}

// eventKey tells an event from others, wherever it was read: the database
// keeps microseconds.
type eventKey struct {
	at              int64
	component, text string
	phase           task.Phase
}

func (c *Client) follower(id task.ID, p Progress) *follower {
	return &follower{Client: c, id: id, progress: p, started: time.Now(), reported: map[eventKey]bool{}}
}

// Follow reports a task's progress until it has ended, and returns its row. A
// database that is away for a while is waited for. It returns an error when ctx
// ends first; the task goes on.
func (c *Client) Follow(ctx context.Context, id task.ID, p Progress) (taskdb.TaskRow, error) {
	f := c.follower(id, p)
	tick := time.NewTicker(stagingPoll)
	defer tick.Stop()
	var asked time.Time
	for {
		here := f.local()
		if time.Since(asked) >= databasePoll {
			row, err := f.DB.Task(ctx, f.id)
			if err == nil {
				f.status = row.Status
			}
			switch {
			case ctx.Err() != nil:
			case here && errors.Is(err, taskdb.ErrNotFound): // asked for offline: its row comes with its outcome
			case err != nil && !taskdb.Transient(err):
				return row, err
			case err != nil:
			case row.Status == task.StatusPending:
				f.wait(ctx, row)
			case row.Status.Final():
				if !f.local() {
					f.recorded(ctx)
				}
				return row, nil
			case !here:
				f.recorded(ctx)
			}
			asked = time.Now()
		}
		p.Poll(f.status)
		select {
		case <-ctx.Done():
			return taskdb.TaskRow{}, fmt.Errorf("stopped following task %s; it goes on: see wrktalk-agent status", id)
		case <-tick.C:
		}
	}
}

// FollowOffline reports the progress of a task of this host until it has an
// outcome, and returns that. The database is not asked. It returns ErrShredded
// when the task's directory went before its outcome was seen: then the database
// knows it.
func (c *Client) FollowOffline(ctx context.Context, id task.ID, p Progress) (task.Outcome, error) {
	f := c.follower(id, p)
	tick := time.NewTicker(stagingPoll)
	defer tick.Stop()
	for {
		f.local()
		o, err := c.localOutcome(id)
		switch {
		case err == nil:
			f.local()
			return o, nil
		case !errors.Is(err, errNoOutcome):
			return o, err
		}
		p.Poll(f.status)
		select {
		case <-ctx.Done():
			return o, fmt.Errorf("stopped following task %s; it goes on: see wrktalk-agent logs %s", id, id)
		case <-tick.C:
		}
	}
}

// local reports what is new in the task's timeline, and whether this host's
// staging directory has it and may be read.
func (f *follower) local() bool {
	events, err := f.localEvents(f.id)
	if err != nil {
		return false
	}
	for _, e := range events {
		f.report(e)
	}
	return true
}

// recorded reports what is new in the copy of the timeline that the agent's own
// schema has: for tasks of another host or user.
func (f *follower) recorded(ctx context.Context) {
	for {
		events, err := f.DB.Events(ctx, f.id, f.after)
		if err != nil || len(events) == 0 {
			return // the next look may succeed; the row tells the end in any case
		}
		for _, e := range events {
			f.report(e.Event)
			f.after = e.Seq
		}
	}
}

func (f *follower) report(e task.Event) {
	key := eventKey{e.Time.Round(time.Microsecond).UnixMicro(), e.Component, e.Text, e.Phase}
	if !f.reported[key] {
		f.reported[key] = true
		f.progress.Event(e)
	}
}

// wait says once why a pending task is not picked up, when that takes longer
// than it should.
func (f *follower) wait(ctx context.Context, row taskdb.TaskRow) {
	if row.DueIn <= 0 && time.Since(f.started) < 2*time.Second {
		return
	}
	s, err := f.DB.Status(ctx, f.Target)
	if err != nil {
		return
	}
	if row.ChartType, err = f.DB.WaitsFor(ctx, row.ID); err != nil {
		return
	}
	if why := f.whyWaiting(row, s); why != f.waiting {
		f.waiting = why
		f.progress.Waiting(why)
	}
}

// localEvents returns the timeline of a task in the staging directory.
func (c *Client) localEvents(id task.ID) ([]task.Event, error) {
	dir, err := staging.Open(c.StagingDir, staging.Reader)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	t, err := dir.Find(id)
	if err != nil {
		return nil, err
	}
	return t.Events()
}

// errNoOutcome means that a task has not ended yet.
var errNoOutcome = errors.New("there is no outcome yet")

// localOutcome returns the outcome of a task in the staging directory;
// errNoOutcome as long as there is none, ErrShredded when its directory is gone.
func (c *Client) localOutcome(id task.ID) (task.Outcome, error) {
	dir, err := staging.Open(c.StagingDir, staging.Reader)
	if err != nil {
		return task.Outcome{}, err
	}
	defer dir.Close()
	t, err := dir.Find(id)
	if errors.Is(err, fs.ErrNotExist) {
		return task.Outcome{}, ErrShredded
	}
	if err != nil {
		return task.Outcome{}, err
	}
	return outcomeOf(t)
}

// outcomeOf returns the outcome of a task; errNoOutcome as long as there may
// still be one.
func outcomeOf(t *staging.Task) (task.Outcome, error) {
	o, err := t.Outcome()
	switch {
	case err == nil:
		return o, nil
	case t.State == staging.Quarantine:
		return o, fmt.Errorf("task directory %s was set aside: see wrktalk-agent inspect %s", t.Path(), t.Name)
	case errors.Is(err, fs.ErrNotExist):
		return o, errNoOutcome
	}
	return o, err
}
