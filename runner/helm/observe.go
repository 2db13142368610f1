package helm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// retryDelay is between two tries to reach an API that is away.
const retryDelay = 2 * time.Second

// Observe reads the release's history.
func (b *backend) Observe(ctx context.Context) (deploy.Observation, error) {
	var err error
	if b.cluster, err = connect(b.job.Helm, requestTimeout, b.report); err != nil {
		return deploy.Observation{}, err
	}
	if b.job.Action == protocol.ActionRecover {
		return b.observeAfterDeath(ctx)
	}
	if b.valuesErr != nil {
		return deploy.Observation{}, b.valuesErr
	}
	if b.before, err = b.firstHistory(ctx); err != nil {
		return deploy.Observation{}, err
	}
	if applied(b.before.last(), *b.job, b.values) {
		return b.observeApplied(), nil
	}
	if err := b.before.lockedByOthers(*b.job, time.Now()); err != nil {
		return deploy.Observation{State: deploy.StateLocked, Reason: err.Error()}, nil
	}
	if b.job.Kind == task.KindRollback {
		if b.target, err = rollbackTarget(b.before, *b.job); err != nil {
			return deploy.Observation{}, err
		}
	}
	if b.target != nil {
		b.fillRelease(b.target)
	} else if b.job.Release.PayloadDir == "" {
		return deploy.Observation{}, fmt.Errorf("the artifact of release %s is not staged and no revision of it is kept", b.job.Release.Version)
	}
	return b.observation(b.before, b.before.interrupted(*b.job)), nil
}

// observeAfterDeath finds out what a process that died on the same job had
// reached.
func (b *backend) observeAfterDeath(ctx context.Context) (deploy.Observation, error) {
	now, err := b.awaitHistory(ctx)
	if err == nil && !byClaim(now.last(), *b.job) && now.interrupted(*b.job) == nil {
		// What the dead process asked for last may still be on its way.
		retry.Sleep(ctx, retryDelay)
		now, err = b.awaitHistory(ctx)
	}
	if err != nil {
		return deploy.Observation{}, err
	}
	b.before = now
	last, left := now.last(), now.interrupted(*b.job)
	switch {
	case applied(last, *b.job, b.values):
		return b.observeApplied(), nil
	case last == nil:
		return deploy.Observation{State: deploy.StateAbsent}, nil
	case !byClaim(last, *b.job) && (left == nil || last.Info.Status == release.StatusDeployed):
		o := b.observation(now, nil)
		if left != nil {
			o.Leftover = leftover(left)
		}
		if pending := now.pending(); len(pending) > 0 {
			o.State = deploy.StateLocked
			o.Reason = fmt.Sprintf("revision %d is %s, left or being worked on by somebody else", pending[0].Version, pending[0].Info.Status)
		}
		return o, nil
	case isRestore(last) && last.Info.Status == release.StatusDeployed:
		return deploy.Observation{State: deploy.StateServing, Restored: true, Serves: b.serves(last)}, nil
	}
	return b.observation(now, last), nil
}

// observeApplied is the Observation of a job that is done already.
func (b *backend) observeApplied() deploy.Observation {
	b.fillRelease(b.before.last())
	return deploy.Observation{State: deploy.StateApplied, Serves: b.serves(b.before.last())}
}

// observation is that of a history in which left, unless it is nil, is to give
// way to what served before.
func (b *backend) observation(h history, left *release.Release) deploy.Observation {
	o := deploy.Observation{State: deploy.StateServing, Serves: b.serves(h.serving()), Unsettled: h.unsettled()}
	switch {
	case left != nil:
		b.failed = left
		o.Leftover = leftover(left)
		o.State = deploy.StateFailed
		if left.Info.Status.IsPending() {
			o.State = deploy.StateInterrupted
		}
	case h.serving() == nil:
		o.State = deploy.StateAbsent
	}
	return o
}

func leftover(rel *release.Release) string { return fmt.Sprintf("revision %d", rel.Version) }

// serves says that rel serves, nothing when it is nil.
func (b *backend) serves(rel *release.Release) deploy.Serves {
	if rel == nil {
		return deploy.Serves{}
	}
	return deploy.Serves{Version: b.before.versionOf(rel, *b.job), Revision: rel.Version, Detail: asRevision(rel.Version)}
}

// fillRelease completes a job that does not say which artifact it is about, or of
// which the database could not know.
func (b *backend) fillRelease(rel *release.Release) {
	want := &b.job.Release
	if b.job.Unnamed && !holds(rel, *want) {
		*want = protocol.Release{}
	}
	if want.ArtifactID == "" {
		want.Version = cmp.Or(want.Version, b.before.versionOf(rel, *b.job))
		want.ArtifactID, want.SHA256 = b.before.originLabel(rel, labelArtifact), b.before.originLabel(rel, labelDigest)
	}
}

// readHistory reads the history, and learns what of it must not show.
func (b *backend) readHistory() (history, error) {
	h, err := b.cluster.readHistory(b.job.Helm.Release)
	for _, rel := range h[max(0, len(h)-3):] {
		b.report.Learn(secretsOfRelease(rel)...)
	}
	if s := h.serving(); s != nil {
		b.report.Learn(secretsOfRelease(s)...)
	}
	return h, err
}

// firstHistory reads the history before anything was changed. An API that is away
// is a reason to refuse, but not when an earlier attempt may have left the release
// half applied: the host, and with it the API, may be starting.
func (b *backend) firstHistory(ctx context.Context) (history, error) {
	read := func() (history, error) {
		if err := b.cluster.reachable(ctx); err != nil {
			return nil, err
		}
		return b.readHistory()
	}
	if !b.job.Interrupted {
		h, err := read()
		if err != nil {
			err = cmp.Or(context.Cause(ctx), err)
		}
		return h, err
	}
	h, err := b.retryHistory(ctx, read, func(reason string) {
		b.report.Event(task.PhasePreflight, "%s; waiting for it", reason)
	})
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %s", cause, deploy.OneLine(err.Error()))
	}
	return h, err
}

// awaitHistory reads the history, for as long as ctx allows: half applied is the
// one state that must not stay because the API was restarting.
func (b *backend) awaitHistory(ctx context.Context) (history, error) {
	return b.retryHistory(ctx, b.readHistory, func(string) {})
}

// retryHistory reads the history until that succeeds or ctx ends. Waiting is told
// each new reason to try again.
func (b *backend) retryHistory(ctx context.Context, read func() (history, error), waiting func(reason string)) (h history, err error) {
	said := ""
	err = retry.Policy{First: retryDelay, Max: retryDelay}.Do(ctx, func() (err error) {
		h, err = read()
		return err
	}, func(err error, _ time.Duration) {
		if reason := deploy.OneLine(err.Error()); reason != said && ctx.Err() == nil {
			said = reason
			b.report.Note("%s; trying again", reason)
			waiting(reason)
		}
	})
	return h, err
}

// rollbackTarget returns the revision that a rollback task means: the newest
// successful one of the artifact it names, or of the version when it names only
// that; the one before when it names none; nil when the artifact must be deployed
// anew.
//
// The flags in the database, which chose the artifact for a task that names none, know
// nothing of what a person did with Helm: then the history tells what served before.
func rollbackTarget(past history, job protocol.Job) (*release.Release, error) {
	if job.Unnamed && past.changedByHand(job.Release) {
		if target := past.previous(); target != nil {
			return target, nil
		}
	}
	if job.Release.ArtifactID != "" || job.Release.PayloadDir != "" {
		return past.newest(func(rel *release.Release) bool { return holds(rel, job.Release) }), nil
	}
	if want := job.Release.Version; want != "" {
		target := past.newest(func(rel *release.Release) bool { return label(rel, labelVersion) == labelValue(want) })
		if target == nil {
			return nil, fmt.Errorf("no successful revision of release %s is kept: %s", want, past.available())
		}
		return target, nil
	}
	if target := past.previous(); target != nil {
		return target, nil
	}
	return nil, fmt.Errorf("there is no release to roll back to that was not rolled back from: %s", past.available())
}
