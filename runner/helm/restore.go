package helm

import (
	"context"
	"time"

	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// restoreTries is how often a rollback is tried that the API cut short, or one of
// its webhooks, which may be part of the release and on its way up.
const restoreTries = 5

// Former returns the newest revision that came up, but for the one that failed.
func (b *backend) Former(ctx context.Context) (deploy.Former, error) {
	now, err := b.awaitHistory(ctx)
	if err != nil {
		return deploy.Former{}, err
	}
	switch {
	case len(now) == 0 && b.cleared:
		return deploy.Former{Text: "; it was removed", Serves: &deploy.Serves{}}, nil
	case b.failed == nil:
		serves := b.serves(now.serving())
		return deploy.Former{Text: " before it was recorded; at most its CRDs, its namespace or leftovers of an earlier try were changed", Serves: &serves}, nil
	case now.neverServed():
		return deploy.Former{Way: deploy.RemoveAll}, nil
	}
	if err := b.cluster.markFailed(now, b.why); err != nil {
		return deploy.Former{}, err
	}
	back := now.newest(func(rel *release.Release) bool { return rel.Version != b.failed.Version })
	if back == nil {
		return deploy.Former{Text: " and was left as it is: no revision of it ever came up, so there is none to go back to"}, nil
	}
	return deploy.Former{Way: deploy.BringBack, Version: now.versionOf(back, *b.job), Revision: back.Version}, nil
}

// Restore rolls back to the former revision.
func (b *backend) Restore(ctx context.Context, back deploy.Former) (deploy.Applied, error) {
	b.restoring = true
	b.abandon()
	b.report.Event(task.PhaseRestoring, "rolling back to revision %d, release %s", back.Revision, back.Version)
	var out outcome
	var cause error // of the last try that the time was not up for
	policy := retry.Policy{First: time.Second, Max: 8 * time.Second, Tries: restoreTries}
	err := policy.Do(ctx, func() error {
		if out.err != nil { // what the try before left pending
			b.report.Note("rolling back failed: %v", out.err)
			now, err := b.awaitHistory(ctx)
			if err != nil || b.cluster.markFailed(now, "restoring failed: "+out.err.Error()) != nil {
				return retry.Permanent(out.err)
			}
		}
		out = b.run(ctx, command{Name: commandRollback, Action: actionRestore, Revision: back.Revision})
		f := failureOf(out.err)
		switch {
		case f == nil:
			return nil
		case f.late || f.hook != nil:
			f.before = cause
			return retry.Permanent(f) // time or a hook is the reason, not an API that went away
		}
		cause = f.err
		return f
	}, nil)
	return deploy.Applied{Changed: true, Revision: out.revision, Detail: out.detail(nil)}, err
}

// Remove uninstalls a first installation that failed.
func (b *backend) Remove(ctx context.Context) error {
	b.abandon()
	return b.uninstall(ctx)
}
