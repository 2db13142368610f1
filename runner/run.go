package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// run takes one task in running to its end: to done, to the trash when its
// claim was lost, or to quarantine when nobody can tell what it is. What stands
// in the way, such as a full disk, is waited out: no other task is touched until
// this one is finished, but for one that was asked for offline while this one
// waits for the database. Then, or when the agent stops first, the directory
// stays in running, to be gone on with.
func (r *Runner) run(sig Signals, t *staging.Task) {
	const longest = 30 * time.Second
	for n, wait := 1, time.Second; ; n, wait = n+1, min(2*wait, longest) {
		err := r.carryOut(sig, t)
		r.phases.Stop()
		if err == nil {
			r.tell(n, nil)
			return
		}
		if errors.Is(err, taskdb.ErrFenced) {
			r.Log.Warn("the claim was lost: another agent took the task over, or it was ended by hand; leaving it alone", "task", t.Name)
			if err = t.Discard(); err == nil {
				return
			}
		}
		switch {
		case errors.Is(err, errGiveWay):
			r.Log.Info("letting another task go first", "task", t.Name, "reason", err)
			return
		case errors.Is(err, errKilled), sig.Stop.Err() != nil:
			r.Log.Warn("stopping with a task unfinished; the next start goes on with it", "task", t.Name, "reason", err)
			return
		case t.Gone():
			r.Log.Error("a task's directory was removed while it was worked on; its row stays in progress until its lease runs out", "task", t.Name)
			return
		case t.State != staging.Running: // what is left to do there, others do
			r.Log.Error("a task was put away, but not completely", "task", t.Name, "state", string(t.State), "error", err)
			return
		}
		r.Log.Error("a task cannot be finished; trying again", "task", t.Name, "error", err, "in", wait)
		r.tell(n, err)
		select {
		case <-time.After(wait):
		case <-sig.Stop.Done():
		}
	}
}

func (r *Runner) carryOut(sig Signals, t *staging.Task) error {
	m, err := t.Manifest()
	if ofDisk(err) {
		return err
	}
	if err != nil {
		r.Log.Error("setting a task aside whose manifest cannot be trusted; its lease will run out and it is staged anew",
			"task", t.Name, "error", err)
		return t.Quarantine(err.Error())
	}
	t.Mirror(r.Timeline.For(m.TaskID, m.Token))
	beat := r.startHeartbeat(m)
	defer beat.stop()
	if beat.wish, err = r.awaitWish(t, m); err != nil {
		return err
	}
	defer beat.wish.stop()

	o, err := t.Outcome()
	switch {
	case err == nil: // a predecessor got this far
	case errors.Is(err, fs.ErrNotExist):
		if o, err = r.outcome(sig, t, m, beat); err != nil {
			return err
		}
		if err := r.keep(sig, t, o); err != nil {
			return err
		}
		if o.Offline && o.Succeeded {
			if err := r.overtake(t, o); err != nil {
				return err
			}
		}
	case ofDisk(err):
		return err
	default:
		return t.Quarantine(err.Error())
	}
	return r.record(sig, t, o)
}

// ofDisk reports whether err says that a file cannot be read now, rather than
// what is wrong with it.
func ofDisk(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && slices.Contains([]syscall.Errno{
		syscall.EIO, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ESTALE, syscall.ENOSPC,
	}, errno)
}

// overtake ends the tasks that were left half-way when an operator rolled back on
// this host: what they left is gone, and gone on with they would undo it.
func (r *Runner) overtake(t *staging.Task, o task.Outcome) error {
	left, err := r.halfway()
	if err != nil {
		return err
	}
	for _, other := range left {
		m, err := other.Manifest()
		if err != nil || other.Name == t.Name {
			continue // its own run says what is wrong
		}
		end := outcomeOf(m)
		end.Message = fmt.Sprintf("The deployment was interrupted, and an operator rolled back to release %s on this host meanwhile", o.ReleaseVersion)
		end.Error, end.Serving, end.FinishedAt = "given up for a rollback without the database", o.Serving, time.Now().UTC()
		if err := other.SetOutcome(end); err != nil {
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

// keep writes the outcome to disk. While it cannot, the task is not run again
// but for a stop of the agent. A directory that somebody removed is given up.
func (r *Runner) keep(sig Signals, t *staging.Task, o task.Outcome) error {
	ctx, release := afterDone(sig.Stop, lastTry)
	defer release()
	return r.again(ctx, t, "keep the outcome", func(context.Context) error {
		err := t.SetOutcome(o)
		if err != nil && t.Gone() {
			release()
		}
		return err
	})
}

// outcome finds out what comes of the task, deploying it unless there is a
// reason not to. An error means that there is no outcome yet, or none of ours.
func (r *Runner) outcome(sig Signals, t *staging.Task, m *staging.Manifest, beat *heartbeat) (task.Outcome, error) {
	o := outcomeOf(m)
	if m.Previous != nil {
		o.Serving = m.Previous.Version
	}
	fail := func(message, reason string) (task.Outcome, error) {
		o.Message, o.Error, o.FinishedAt = message, reason, time.Now().UTC()
		return o, nil
	}
	if m.Refusal != "" {
		return fail(refused(&o, !m.TakenOver), m.Refusal)
	}

	// The claim may have been lost while the directory waited, and starting
	// twice is worse than starting late: no answer, no start.
	r.event(t, task.PhaseVerifying, "verifying the staged files")
	run, err := t.Run()
	if err != nil {
		return o, err
	}
	if err := r.confirm(sig, t, run, beat); err != nil {
		return o, err
	}
	cancelled := beat.wish.look(sig.Stop, true)
	if cancelled && run.Attempts == 0 && !m.TakenOver {
		return fail("The task was cancelled before it began; nothing was changed", beat.wish.error())
	}
	if err := t.Verify(m); err != nil {
		return fail(refused(&o, !m.TakenOver && run.Attempts == 0),
			fmt.Sprintf("the staging directory was changed after staging: %v", err))
	}
	job := r.job(t, m)
	if run.Attempts >= r.MaxAttempts || cancelled || beat.blind {
		job.Action = deployment.ActionRecover
	}
	halfway := run.Attempts > 0 || m.TakenOver
	job.Again = halfway
	run.Attempts++
	if run.Attempts == 1 {
		run.StartedAt = time.Now().UTC()
	}
	if err := t.SetRun(run); err != nil {
		return o, err
	}
	o.StartedAt = run.StartedAt

	res, err := r.deploy(sig, t, job, beat, run.Attempts > 1)
	if err != nil {
		return o, err
	}
	if halfway && !res.Succeeded && !res.Touched && job.Action == deployment.ActionDeploy {
		// This attempt changed nothing, but an earlier one may have.
		why := res.Error
		job.Action = deployment.ActionRecover
		if res, err = r.deploy(sig, t, job, beat, true); err != nil {
			return o, err
		}
		if !res.Succeeded {
			res.Error = why + "; " + res.Error
		}
	}
	o.FinishedAt = time.Now().UTC()
	o.Succeeded, o.Message, o.Error = res.Succeeded, res.Message, res.Error
	o.HelmRevision, o.LogTail, o.Restored = res.HelmRevision, res.LogTail, res.Restored
	if o.ArtifactID == "" && o.Succeeded { // a rollback that named no release
		o.ArtifactID, o.ReleaseVersion = res.ArtifactID, res.Serving
	}
	if res.Touched || res.Succeeded {
		o.Serving = res.Serving
	}
	switch {
	case o.Succeeded: // a wish that came too late
	case beat.wish.error() != "":
		o.Error = beat.wish.error() + ": " + o.Error
	case job.Action == deployment.ActionRecover && run.Attempts > r.MaxAttempts:
		o.Error = fmt.Sprintf("gave up after %d attempts, each cut short: %s", r.MaxAttempts, o.Error)
	}
	return o, nil
}

// pagePatience is how long a page that a crash left up stays while the database
// does not confirm the claim: it goes within a minute, a last try included.
const pagePatience = 20 * time.Second

// confirm waits until the database says that the claim holds. A page that an
// interrupted attempt left up does not wait for that.
//
// The database may be part of the very project that the attempt left half-way,
// and then nobody but the agent brings it back. So a Compose release is repaired
// without it when it has been silent for as long as a claim lives.
func (r *Runner) confirm(sig Signals, t *staging.Task, run staging.Run, beat *heartbeat) error {
	began, up := time.Now(), run.Attempts > 0
	return r.patiently(sig.Stop, t, "confirm the claim", func(ctx context.Context) error {
		err := beat.confirm(ctx)
		if err == nil || errors.Is(err, taskdb.ErrFenced) {
			return err
		}
		silent := time.Since(began)
		if up && silent > r.pagePatience {
			up = false
			r.event(t, task.PhaseMaintenance, "taking the maintenance page down while the database is away")
			r.endMaintenance(t)
		}
		if run.Attempts > 0 && r.Compose != nil && silent > r.Lease {
			r.Log.Warn("the database stays away: repairing what an interrupted attempt left without it", "task", t.Name, "error", err)
			beat.blind = true
			return nil
		}
		return err
	})
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

// job describes the deployment to wrktalk-deploy.
func (r *Runner) job(t *staging.Task, m *staging.Manifest) deployment.Job {
	has := make(map[string]bool, len(m.Files))
	for _, f := range m.Files {
		has[f.Path] = true
	}
	release := func(rel staging.Release, under string, payload bool) deployment.Release {
		d := deployment.Release{ArtifactID: rel.ArtifactID, Version: rel.Version, SHA256: rel.SHA256}
		if payload {
			d.PayloadDir = t.Path(under, staging.PayloadDir)
		}
		if has[join(under, staging.EnvFile)] {
			d.EnvFile = t.Path(under, staging.EnvFile)
		}
		if has[join(under, staging.ValuesFile)] {
			d.ValuesFile = t.Path(under, staging.ValuesFile)
		}
		return d
	}
	job := deployment.Job{
		Schema: deployment.Schema, Action: deployment.ActionDeploy,
		TaskID: m.TaskID, Kind: m.Kind, Token: m.Token,
		Release: release(m.Release, "", !m.Offline),
		Timeout: r.Timeout, RestoreTimeout: r.RestoreTimeout,
		Compose: r.Compose, Helm: r.Helm,
	}
	if m.Previous != nil {
		p := release(*m.Previous, staging.RestoreDir, m.PreviousStaged)
		job.Previous = &p
	}
	return job
}

func join(under, name string) string {
	if under == "" {
		return name
	}
	return under + "/" + name
}
