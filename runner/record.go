package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// finalTimeout is how long recording may still take once the agent is stopping: the
// outcome is on disk, so the next start can record it as well.
const finalTimeout = 5 * time.Second

// record makes an outcome that is on disk known: to the database, however long
// that takes, and then to the notifier. Secrets leave the disk after the first
// try, so that a database that is away does not keep them there.
func (r *run) record(o task.Outcome) error {
	t := r.task
	ctx, release := background.Grace(r.sig.Idle, finalTimeout)
	defer release()
	defer context.AfterFunc(r.sig.Kill, release)()

	if t.ForgetRequested() {
		return r.forget(ctx, o)
	}
	refusal := t.Refusal()
	if refusal == nil {
		r.event(task.PhaseRecording, "recording the outcome: "+string(o.Status()))
	}
	finish := func(ctx context.Context) error { return r.db.Finish(ctx, o) }
	if refusal != nil && refusal.LetsPass {
		finish = func(ctx context.Context) error { return r.db.FinishWithoutFlags(ctx, o) }
	}
	isNext, err := r.isNextToRecord()
	if isNext {
		first, cancel := context.WithTimeout(ctx, finalTimeout)
		err = finish(first)
		cancel()
	}
	if shredErr := t.ShredSecrets(); shredErr != nil {
		return errors.Join(err, shredErr)
	}
	if !isNext {
		return cmp.Or(err, fmt.Errorf("%w: an earlier outcome is recorded first", errGiveWay))
	}
	if err != nil && !taskdb.Refused(err) {
		if tasks, _ := r.interrupted(); len(tasks) > 0 { // one of which may be what the database waits for
			return fmt.Errorf("%w: %w", errGiveWay, err)
		}
		err = r.retryWithDB(ctx, t, "record the outcome", func(ctx context.Context) error {
			err := finish(ctx)
			if taskdb.Refused(err) {
				err = retry.Permanent(err)
			}
			return err
		})
	}
	if taskdb.Refused(err) {
		return r.postpone(ctx, o, err)
	}
	if err != nil {
		return err
	}
	return r.complete(ctx, o)
}

// complete hands a task to the notifier.
func (r *run) complete(ctx context.Context, o task.Outcome) error {
	t := r.task
	if r.ended == t.Name { // told before: only the directory did not move on
		return t.Complete()
	}
	r.ended = t.Name
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
	r.Metrics.TaskEnded(o.Kind, o.Status())
	return t.Complete()
}

// refusedRetry is how long to wait between two tries to record what the database
// refuses: somebody has to mend that first.
var refusedRetry = retry.Policy{First: 15 * time.Second, Max: 5 * time.Minute}

// postpone leaves an outcome that the database refuses for later. The tasks after it
// go on in the meantime unless they would be based on something untrue: if the
// outcome says that another release serves, the database has to take at least that.
func (r *run) postpone(ctx context.Context, o task.Outcome, refused error) error {
	f := r.task.Refusal()
	if f == nil {
		f = &staging.Refusal{Since: time.Now().UTC()}
	}
	f.Reason = task.SafeText(refused.Error(), task.MaxMessage)
	if !f.LetsPass && taskdb.MovesFlags(o) {
		try, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		if err := r.db.RecordServing(try, o); err != nil {
			if errors.Is(err, taskdb.ErrFenced) || !taskdb.Refused(err) {
				return err
			}
			f.Reason = task.SafeText(f.Reason+"; "+err.Error(), task.MaxMessage)
		} else {
			f.LetsPass = true
		}
	} else {
		f.LetsPass = true
	}
	f.Tries++
	wait := refusedRetry.Delay(f.Tries)
	f.Next = time.Now().UTC().Add(wait)
	if err := r.task.SaveRefusal(*f); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w; mend it, or give it up with `wrktalk-agent forget %s`", errRefused, refused, o.TaskID)
}

// forget gives up recording an outcome that the database refuses, as an operator
// asked, after a last try. Whatever the row says, this host does not carry the task
// out again.
func (r *run) forget(ctx context.Context, o task.Outcome) error {
	try, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	finish := r.db.Finish
	if f := r.task.Refusal(); f != nil && f.LetsPass {
		finish = r.db.FinishWithoutFlags
	}
	if err := finish(try, o); err != nil {
		if err := r.dir.Forget(staging.Claim{TaskID: o.TaskID, Token: o.Token}); err != nil {
			return err
		}
		r.event(task.PhaseRecording, "gave up recording the outcome, as an operator asked: end the row by hand if it is in progress")
		r.Log.Warn("an operator gave up recording an outcome", "task", r.task.Name, "error", err)
	}
	if err := r.task.ShredSecrets(); err != nil {
		return err
	}
	return r.complete(ctx, o)
}

// isNextToRecord reports whether the task has the oldest of the outcomes that the
// database does not know yet: they are recorded in the order in which they came about.
func (r *run) isNextToRecord() (bool, error) {
	first, err := r.unrecorded()
	if f := r.task.Refusal(); f != nil && f.LetsPass {
		return err == nil, err // later ones have passed it already
	}
	return err == nil && (first == nil || first.Name == r.task.Name), err
}

// endAttempt notes in the agent's own schema, if there is one, how the attempt
// ended.
func (r *run) endAttempt(ctx context.Context, o task.Outcome) error {
	ctx, cancel := context.WithTimeout(ctx, finalTimeout)
	defer cancel()
	return r.db.RecordAttempt(ctx, taskdb.Attempt{TaskID: o.TaskID, Token: o.Token, Ended: true, Note: string(o.Status())})
}
