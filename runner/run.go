package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// runTask takes one task in running to its end: to done, to the trash when its
// claim was lost, or to quarantine when nobody can tell what it is. What stands
// in the way, such as a full disk, is waited out: no other task is touched until
// this one is finished, but for one that was asked for offline while this one
// waits for the database. Then, or when the agent stops first, the directory
// stays in running, to be gone on with.
func (r *Runner) runTask(sig Signals, t *staging.Task) {
	for n := 1; ; n++ {
		err := r.tryTask(sig, t)
		r.phases.Stop()
		if err == nil {
			r.reportReady(n, nil)
			return
		}
		if errors.Is(err, taskdb.ErrFenced) {
			r.Log.Warn("the claim was lost: another agent took the task over, or it was ended by hand; leaving it alone", "task", t.Name)
			if err = t.Remove(); err == nil {
				return
			}
		}
		switch {
		case errors.Is(err, errRefused) && letsPass(t):
			r.Log.Error("an outcome is not recorded; other tasks go on", "task", t.Name, "error", err)
			r.reportReady(2, err)
			return
		case errors.Is(err, errGiveWay):
			r.Log.Info("letting another task go first", "task", t.Name, "reason", err)
			return
		case errors.Is(err, errKilled), sig.Idle.Err() != nil:
			r.Log.Warn("stopping with a task unfinished; the next start goes on with it", "task", t.Name, "reason", err)
			return
		case t.Missing():
			r.Log.Error("a task's directory was removed while it was worked on; its row stays in progress until its lease runs out", "task", t.Name)
			return
		case t.State != staging.Running: // what is left to do there, others do
			r.Log.Error("a task was put away, but not completely", "task", t.Name, "state", string(t.State), "error", err)
			return
		}
		wait := taskRetry.Delay(n)
		r.Log.Error("a task cannot be finished; trying again", "task", t.Name, "error", err, "in", wait)
		r.reportReady(n, err)
		r.alive(wait)
		retry.Sleep(sig.Idle, wait)
		if urgent, offlineErr := r.offline(); errors.Is(err, errRefused) && offlineErr == nil && urgent != nil {
			return // that one does not wait for what the database refuses
		}
	}
}

// letsPass reports whether other tasks may go on although the database refuses this
// one's outcome.
func letsPass(t *staging.Task) bool {
	f := t.Refusal()
	return f != nil && f.LetsPass
}

// run is a task in running on its way to its end.
type run struct {
	*Runner
	sig       Signals
	task      *staging.Task
	manifest  *staging.Manifest
	heartbeat *heartbeat
	cancel    *cancelRequest

	// unverified: the database has been away for so long that what an interrupted
	// attempt left is repaired although nobody confirms that the claim holds.
	unverified bool
}

// tryTask makes one attempt at bringing a task to its end.
func (r *Runner) tryTask(sig Signals, t *staging.Task) error {
	m, err := t.Manifest()
	if isDiskError(err) {
		return err
	}
	if err != nil {
		r.Log.Error("setting a task aside whose manifest cannot be trusted; its lease will run out and it is staged anew",
			"task", t.Name, "error", err)
		return t.Quarantine(err.Error())
	}
	t.OnEvent(r.Timeline.For(m.TaskID, m.Token))
	heartbeat := r.startHeartbeat(m)
	defer heartbeat.Stop()
	cancel, err := r.watchCancel(t, m)
	if err != nil {
		return err
	}
	defer cancel.stop()
	current := &run{Runner: r, sig: sig, task: t, manifest: m, heartbeat: heartbeat, cancel: cancel}
	return current.finish()
}

// finish brings about the task's outcome, unless a predecessor has, and makes it
// known.
func (r *run) finish() error {
	o, err := r.task.Outcome()
	switch {
	case err == nil: // a predecessor got this far
	case errors.Is(err, fs.ErrNotExist):
		if o, err = r.outcome(); err != nil {
			return err
		}
		if err := r.saveOutcome(o); err != nil {
			return err
		}
		if o.Offline && o.Succeeded {
			if err := r.supersede(o); err != nil {
				return err
			}
		}
	case isDiskError(err):
		return err
	default:
		return r.task.Quarantine(err.Error())
	}
	return r.record(o)
}

// isDiskError reports whether err says that a file cannot be read now, rather than
// what is wrong with it.
func isDiskError(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && slices.Contains([]syscall.Errno{
		syscall.EIO, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ESTALE, syscall.ENOSPC,
	}, errno)
}

// supersede ends the tasks that were interrupted when an operator rolled back on
// this host: what they left is gone, and gone on with they would undo it.
func (r *run) supersede(o task.Outcome) error {
	interrupted, err := r.interrupted()
	if err != nil {
		return err
	}
	for _, other := range interrupted {
		m, err := other.Manifest()
		if err != nil || other.Name == r.task.Name {
			continue // its own run says what is wrong
		}
		end := outcomeOf(m)
		end.Message = fmt.Sprintf("The deployment was interrupted, and an operator rolled back to release %s on this host meanwhile", o.ReleaseVersion)
		end.Error, end.Serving, end.FinishedAt = "given up for a rollback without the database", o.Serving, time.Now().UTC()
		if err := other.SaveOutcome(end); err != nil {
			return err
		}
	}
	return nil
}

// outcomeOf begins the outcome of a task.
func outcomeOf(m *staging.Manifest) task.Outcome {
	return task.Outcome{
		Schema: task.OutcomeSchema, TaskID: m.TaskID, Kind: m.Kind, Token: m.Token, Offline: m.Offline,
		ArtifactID: m.Release.ArtifactID, ReleaseVersion: m.Release.Version, ChartType: m.Release.ChartType,
		StartedAt: m.ClaimedAt,
	}
}

// saveOutcome writes the outcome to disk. While it cannot, the task is not run
// again but for a stop of the agent. A directory that somebody removed is given
// up.
func (r *run) saveOutcome(o task.Outcome) error {
	ctx, release := background.Grace(r.sig.Idle, finalTimeout)
	defer release()
	return r.retry(ctx, r.task, "keep the outcome", func(context.Context) error {
		err := r.task.SaveOutcome(o)
		if err != nil && r.task.Missing() {
			release()
		}
		return err
	})
}

// outcome finds out what comes of the task, deploying it unless there is a
// reason not to. An error means that there is no outcome yet, or none of ours.
func (r *run) outcome() (task.Outcome, error) {
	t, m := r.task, r.manifest
	o := outcomeOf(m)
	if m.Previous != nil {
		o.Serving = m.Previous.Version
	}
	var attempts staging.Attempts
	fail := func(message, reason string) (task.Outcome, error) {
		if attempts.Count > 0 {
			r.leaveMaintenance(t) // the last of them may have left the page up
		}
		o.Message, o.Error, o.FinishedAt = message, reason, time.Now().UTC()
		return o, nil
	}
	if m.Rejection != "" {
		return fail(refused(&o, !m.TakenOver), m.Rejection)
	}

	// The claim may have been lost while the directory waited, and starting
	// twice is worse than starting late: no answer, no start.
	r.event(task.PhaseVerifying, "verifying the staged files")
	var err error
	if attempts, err = r.attempts(); err != nil {
		return o, err
	}
	if err := r.confirmClaim(attempts); err != nil {
		return o, err
	}
	cancelled := r.cancel.poll(r.sig.Idle, true)
	if cancelled && attempts.Count == 0 && !m.TakenOver {
		return fail("The task was cancelled before it began; nothing was changed", r.cancel.error())
	}
	if attempts.Count >= 2*r.MaxAttempts {
		o.Serving = ""
		return fail("The deployment was cut short again and again, and so was each repair: what serves now is not known",
			fmt.Sprintf("gave up after %d attempts and as many repairs, each cut short: look at what runs by hand", r.MaxAttempts))
	}
	if err := t.Verify(m); err != nil {
		return fail(refused(&o, !m.TakenOver && attempts.Count == 0),
			fmt.Sprintf("the staging directory was changed after staging: %v", err))
	}
	job := r.job()
	if attempts.Count >= r.MaxAttempts || cancelled || r.unverified {
		job.Action = protocol.ActionRecover
	}
	job.Interrupted = attempts.Count > 0 || m.TakenOver
	attempts.Count++
	if attempts.Count == 1 {
		attempts.StartedAt = time.Now().UTC()
	}
	if err := t.SaveAttempts(attempts); err != nil {
		return o, err
	}
	o.StartedAt = attempts.StartedAt

	res, err := r.deploy(job, attempts.Count > 1)
	if err != nil {
		return o, err
	}
	if job.Interrupted && !res.Succeeded && !res.Changed && job.Action == protocol.ActionDeploy {
		// This attempt changed nothing, but an earlier one may have.
		why := res.Error
		job.Action = protocol.ActionRecover
		if res, err = r.deploy(job, true); err != nil {
			return o, err
		}
		if !res.Succeeded {
			res.Error = why + "; " + res.Error
		}
	}
	o.FinishedAt = time.Now().UTC()
	o.Succeeded, o.Message, o.Error = res.Succeeded, res.Message, res.Error
	o.HelmRevision, o.LogTail, o.Restored = res.HelmRevision, res.LogTail, res.Restored
	if (m.Unnamed || o.ArtifactID == "") && o.Succeeded { // a rollback that named no release
		o.ArtifactID, o.ReleaseVersion = res.ArtifactID, res.Serving
	}
	if res.Changed || res.Succeeded || res.ServingUnknown {
		o.Serving = res.Serving
	}
	switch {
	case o.Succeeded: // a request to cancel came too late
	case r.cancel.error() != "":
		o.Error = r.cancel.error() + ": " + o.Error
	case job.Action == protocol.ActionRecover && attempts.Count > r.MaxAttempts:
		o.Error = fmt.Sprintf("gave up after %d attempts, each cut short: %s", r.MaxAttempts, o.Error)
	}
	return o, nil
}

// attempts returns how often the task was begun. After a record that cannot be read
// the task is repaired, and not begun again.
func (r *run) attempts() (staging.Attempts, error) {
	a, err := r.task.Attempts()
	if err == nil || isDiskError(err) {
		return a, err
	}
	r.Log.Error("the record of a task's attempts cannot be read: repairing what they may have left", "task", r.task.Name, "error", err)
	return staging.Attempts{Count: r.MaxAttempts, StartedAt: r.manifest.ClaimedAt}, nil
}

// defaultPageTimeout is how long a page that a crash left up stays while the
// database does not confirm the claim: it goes within a minute, a last try
// included.
const defaultPageTimeout = 20 * time.Second

// confirmClaim waits until the database says that the claim holds. A page that an
// interrupted attempt left up does not wait for that.
//
// The database may be part of the very project that the attempt left interrupted,
// and then nobody but the agent brings it back. So where the platform's row says
// so, it is repaired without when the database has been silent for as long as a
// claim lives.
func (r *run) confirmClaim(attempts staging.Attempts) error {
	began, up := time.Now(), attempts.Count > 0
	return r.retryWithDB(r.sig.Idle, r.task, "confirm the claim", func(ctx context.Context) error {
		err := r.heartbeat.confirm(ctx)
		if err == nil || errors.Is(err, taskdb.ErrFenced) {
			return err
		}
		silent := time.Since(began)
		if up && silent > r.pageTimeout {
			up = false
			r.event(task.PhaseMaintenance, "taking the maintenance page down while the database is away")
			r.leaveMaintenance(r.task)
		}
		if attempts.Count > 0 && platform.Of(r.Target.Deployment).RepairsUnconfirmed && silent > r.Lease {
			r.Log.Warn("the database stays away: repairing what an interrupted attempt left without it", "task", r.task.Name, "error", err)
			r.unverified = true
			return nil
		}
		return err
	})
}

// event notes one step of the run in the task's timeline and in the log.
func (r *run) event(phase task.Phase, text string) {
	r.append(task.Event{Time: time.Now().UTC(), Component: "runner", Phase: phase, Text: text})
}

func (r *run) append(e task.Event) {
	r.phases.Enter(e.Phase)
	r.Log.Info(e.Text, "task", r.task.Name, "state", string(e.Phase))
	if err := r.task.Append(e); err != nil {
		r.Log.Warn("the timeline misses an event", "task", r.task.Name, "error", err)
	}
}

// refused is the message of a task that is not carried out. Unless it is
// untouched, an earlier attempt may have changed what serves.
func refused(o *task.Outcome, untouched bool) string {
	if untouched {
		return "The task was refused; nothing was changed"
	}
	o.Serving = ""
	return "The task was refused after an interrupted attempt, and what serves now is not known"
}
