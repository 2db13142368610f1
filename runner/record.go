package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// lastTry is how long recording may still take once the agent is stopping: the
// outcome is on disk, so the next start can record it as well.
const lastTry = 5 * time.Second

// record makes an outcome that is on disk known: to the database, however long
// that takes, and then to the notifier. Secrets leave the disk after the first
// try, so that a database that is away does not keep them there.
func (r *Runner) record(sig Signals, t *staging.Task, o task.Outcome) error {
	ctx, release := afterDone(sig.Stop, lastTry)
	defer release()
	defer context.AfterFunc(sig.Kill, release)()

	r.event(t, task.PhaseRecording, "recording the outcome: "+string(o.Status()))
	finish := func(ctx context.Context) error { return r.db.Finish(ctx, o) }
	turn, err := r.recordsNext(t)
	if turn {
		first, cancel := context.WithTimeout(ctx, lastTry)
		err = finish(first)
		cancel()
	}
	if stripErr := t.Strip(); stripErr != nil {
		return errors.Join(err, stripErr)
	}
	if !turn {
		return cmp.Or(err, fmt.Errorf("%w: an earlier outcome is recorded first", errGiveWay))
	}
	if err != nil {
		if left, _ := r.halfway(); len(left) > 0 { // which may be what the database waits for
			return fmt.Errorf("%w: %w", errGiveWay, err)
		}
		if err := r.patiently(ctx, t, "record the outcome", finish); err != nil {
			return err
		}
	}
	level := r.Log.Info
	if !o.Succeeded {
		level = r.Log.Error
	}
	level("task "+string(o.Status()), "task", t.Name, "id", o.TaskID, "release", o.ReleaseVersion,
		"message", o.Message, "error", o.Error, "seconds", o.Duration().Seconds())
	if err := r.endAttempt(ctx, o); err != nil {
		r.Log.Warn("the attempt stays open in the agent's own schema", "task", t.Name, "error", err)
	}
	// Before the directory moves on: a crash in between counts the task twice,
	// the other way round it would not count it at all.
	r.Meter.TaskEnded(o.Kind, o.Status())
	return t.Finish()
}

// recordsNext reports whether t has the oldest of the outcomes that the database
// does not know yet: they are recorded in the order in which they came about.
func (r *Runner) recordsNext(t *staging.Task) (bool, error) {
	first, err := r.unrecorded()
	return err == nil && (first == nil || first.Name == t.Name), err
}

// endAttempt notes in the agent's own schema, if there is one, how the attempt
// ended.
func (r *Runner) endAttempt(ctx context.Context, o task.Outcome) error {
	ctx, cancel := context.WithTimeout(ctx, lastTry)
	defer cancel()
	return r.db.RecordAttempt(ctx, taskdb.Attempt{TaskID: o.TaskID, Token: o.Token, Ended: true, Note: string(o.Status())})
}
