package helm

import (
	"context"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// Apply clears away what a dead process left, and has the prepared step go on.
func (b *backend) Apply(ctx context.Context) (deploy.Applied, error) {
	a, err := b.clear(ctx)
	if err != nil {
		return deploy.Applied{Changed: b.cleared}, err
	}
	if a.Install {
		b.before = nil // gone, and its revisions begin anew
	}
	s := b.prepared
	b.prepared = nil
	s.approve(a)
	s.run(ctx)
	out := s.outcome
	return deploy.Applied{Changed: out.changed || b.cleared, Revision: out.revision, Detail: out.detail(b.notUndone)}, out.err
}

// detail returns how "release 2.0 is up" goes on, with what of earlier revisions was
// not undone before.
func (o outcome) detail(before []string) string {
	text := asRevision(o.revision)
	if stays := slices.Concat(before, o.notUndone); len(stays) > 0 {
		text += "; what an earlier revision left could not all be undone: " + strings.Join(stays, "; ")
	}
	return text
}

// clear unlocks the release, and removes a first installation that never served. What
// is left of that then stands in nobody's way: the release is upgraded, as the
// standard program does.
func (b *backend) clear(ctx context.Context) (approval, error) {
	if pending := b.before.pending(); len(pending) > 0 {
		b.report.Event(task.PhasePreflight, "revision %d was left %s by a process that is gone: unlocking it", pending[0].Version, pending[0].Info.Status)
	}
	if b.before.neverServed() {
		// Upgrading it would skip the hooks of an installation.
		removed, err := b.removeFirst(ctx)
		if err != nil || removed {
			return approval{Install: true}, err
		}
	}
	last := b.before.last()
	if last == nil || last.Info.Status == release.StatusUninstalled {
		return approval{Install: true}, nil
	}
	return approval{}, b.cluster.markFailed(b.before, "its process is gone")
}

// removeFirst removes a first installation that failed, and reports whether it is
// gone. It takes half of the time at most.
func (b *backend) removeFirst(ctx context.Context) (removed bool, err error) {
	end, _ := ctx.Deadline()
	removing, cancel := context.WithTimeoutCause(ctx, time.Until(end)/2, deploy.ErrTimeout)
	defer cancel()
	why := b.uninstall(removing)
	if why == nil {
		return true, nil
	}
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	if b.before, err = b.awaitHistory(ctx); err != nil {
		return false, err
	}
	b.report.Event(task.PhaseApplying, "the failed first installation could not be removed: %v", why)
	b.notUndone = append(b.notUndone, b.cluster.quote(why.Error()))
	return b.before.last() == nil, nil
}

// uninstall removes a release that never served.
func (b *backend) uninstall(ctx context.Context) error {
	out := b.run(ctx, command{Name: commandUninstall})
	b.cleared = b.cleared || out.changed
	return out.err
}

// confirmPolicy lets a blip of the API undo nothing that is up.
var confirmPolicy = retry.Policy{First: retryDelay, Max: retryDelay, Tries: restoreTries}

// Confirm waits until the objects of the newest revision are ready. Helm's own
// wait decides, as it does when a release is applied: what was up by that rule must
// not be undone by a stricter one.
func (b *backend) Confirm(ctx context.Context) (deploy.Applied, error) {
	revision := b.before.last().Version
	b.report.Event(task.PhaseWaiting, "release %s is deployed as revision %d already; looking whether it is up", b.job.Release.Version, revision)
	err := confirmPolicy.Do(ctx, func() error {
		f := failureOf(b.run(ctx, command{Name: commandWait}).err)
		if f == nil {
			return nil
		}
		f.revision = revision
		if f.late {
			return retry.Permanent(f)
		}
		return f
	}, nil)
	return deploy.Applied{Changed: true, Revision: revision, Detail: asRevision(revision)}, err
}
