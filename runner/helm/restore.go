package helm

import (
	"context"
	"fmt"
	"time"

	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

const (
	// retryDelay is between two tries to reach an API that is away.
	retryDelay = 2 * time.Second
	// restoreTries is how often a rollback is tried that the API cut short, or one
	// of its webhooks, which may be part of the release and on its way up.
	restoreTries = 5
)

// afterFailure explains why the release did not come up, brings back what
// served before, and returns the Result. The child that failed is gone.
func (r *run) afterFailure(ctx context.Context, past history, end ending) deployment.Result {
	ctx, cancel := r.restoreContext(ctx)
	defer cancel()
	res := deployment.Result{Touched: true, Error: r.sentence(end, nil)}
	what := fmt.Sprintf("release %s failed", r.job.Release.Version)
	now, err := r.patiently(ctx)
	if err != nil {
		return r.unknown(res, what, err)
	}
	failed := mine(now, past, r.job)
	if end.created != 0 && failed == nil {
		failed = now.last() // found by confirm, perhaps under an earlier claim's token
	}
	if end.killed && !end.late && failed != nil && failed.Info.Status == release.StatusDeployed {
		return r.succeeded(failed.Version) // it was done, and only could not say so
	}
	why := end.cause
	if why == nil && failed != nil && end.late {
		why = r.cluster.explainRelease(ctx, failed)
	}
	res.Error = r.sentence(end, why)
	if why != nil {
		res.LogTail = why.Tail
	}
	note(r.out, "%s", res.Error)
	if failed == nil {
		failed = r.left
	}
	if len(now) == 0 && r.cleared {
		res.Message = what + "; it was removed; nothing serves"
		return res
	}
	if failed == nil {
		res.Message = what + " before it was recorded; at most its CRDs, its namespace or leftovers of an earlier try were changed"
		r.serves(&res, now.serving())
		return res
	}
	return r.restore(ctx, res, now, failed, what)
}

// sentence says in one why the release did not come up.
func (r *run) sentence(end ending, why *cause) string {
	version := r.job.Release.Version
	switch {
	case end.late && why != nil:
		return fmt.Sprintf("release %s was not up after %s: %s", version, r.job.Timeout, why.Sentence)
	case end.late && !isLate(end.err):
		return fmt.Sprintf("release %s was not up after %s: %s", version, r.job.Timeout, task.SafeText(oneLine(end.err.Error()), maxDescription))
	case end.late:
		return fmt.Sprintf("release %s was not up after %s", version, r.job.Timeout)
	case why != nil:
		return fmt.Sprintf("release %s did not come up: %s", version, why.Sentence)
	default:
		return fmt.Sprintf("release %s did not come up: %s", version, task.SafeText(oneLine(end.err.Error()), maxDescription))
	}
}

// restoreContext returns a context that outlives an interruption and a deadline,
// for as long as a restoration may take.
func (r *run) restoreContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), r.job.RestoreTimeout, errRestoreTimeout)
}

// patiently reads the history, for as long as ctx allows: half-way is the one
// state that must not stay because the API was restarting.
func (r *run) patiently(ctx context.Context) (history, error) {
	for said := ""; ; {
		h, err := r.observe()
		if err == nil {
			return h, nil
		}
		if err.Error() != said {
			said = err.Error()
			note(r.out, "%s; trying again", said)
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(retryDelay):
		}
	}
}

// unknown is the Result when the cluster cannot be asked.
func (r *run) unknown(res deployment.Result, what string, err error) deployment.Result {
	res.Message = what + ", and what serves now is not known: look at the cluster"
	res.Error += "; " + oneLine(err.Error())
	return res
}

// serves fills in which revision serves.
func (r *run) serves(res *deployment.Result, rel *release.Release) {
	if rel != nil {
		res.Serving, res.HelmRevision = versionOf(rel, r.job), rel.Version
		res.Message += fmt.Sprintf("; release %s serves as revision %d", res.Serving, rel.Version)
		return
	}
	res.Message += "; nothing serves"
}

// restore makes the revision serve again that did so before failed, and
// completes res, whose message begins with what.
func (r *run) restore(ctx context.Context, res deployment.Result, now history, failed *release.Release, what string) deployment.Result {
	if now.neverServed() {
		return r.removeFirst(ctx, res, what)
	}
	back := now.newest(func(rel *release.Release) bool { return rel.Version != failed.Version })
	if err := r.cluster.markFailed(now, res.Error); err != nil {
		return r.unknown(res, what, err)
	}
	if back == nil {
		res.Message = what + " and was left as it is: no revision of it ever came up, so there is none to go back to"
		return res
	}
	version := versionOf(back, r.job)
	r.emit(task.PhaseRestoring, fmt.Sprintf("rolling back to revision %d, release %s", back.Version, version))
	var end ending
	for try := range restoreTries {
		if try > 0 {
			select {
			case <-time.After(time.Duration(try*try) * time.Second):
			case <-ctx.Done():
			}
		}
		end = r.child(ctx, order{Op: opRollback, Action: actionRestore, Revision: back.Version}, nil)
		if end.err == nil {
			res.Restored, res.Serving, res.HelmRevision = true, version, end.created
			res.Message = fmt.Sprintf("%s; release %s was restored and serves as revision %d", what, version, end.created)
			return res
		}
		if end.late || end.cause != nil || ctx.Err() != nil {
			break // time or a hook is the reason, not an API that went away
		}
		note(r.out, "rolling back failed: %v", end.err)
		if again, err := r.patiently(ctx); err != nil || r.cluster.markFailed(again, "restoring failed: "+end.err.Error()) != nil {
			break
		}
	}
	return r.notRestored(res, end, what, version)
}

// notRestored is the Result when what served before did not come up any more.
func (r *run) notRestored(res deployment.Result, end ending, what, version string) deployment.Result {
	text := oneLine(end.err.Error())
	ctx, cancel := context.WithTimeout(context.Background(), explainTimeout)
	defer cancel()
	if now, err := r.patiently(ctx); err == nil {
		why := end.cause
		if last := now.last(); why == nil && last != nil && isRestore(last) {
			why = r.cluster.explainRelease(ctx, last)
		}
		if why != nil {
			text = why.Sentence
			res.LogTail = append(res.LogTail, why.Tail...)
		}
		if err := r.cluster.markFailed(now, "restoring failed: "+text); err != nil {
			note(r.out, "%v", err)
		}
	}
	if end.late {
		text = fmt.Sprintf("it was not up after %s: %s", r.job.RestoreTimeout, text)
	}
	note(r.out, "restoring release %s failed: %s", version, text)
	res.Message = fmt.Sprintf("%s, and release %s could not be restored: nothing may serve now, look at the cluster", what, version)
	res.Error += fmt.Sprintf("; RESTORING release %s FAILED as well: %s", version, text)
	return res
}

// removeFirst removes a first installation that failed.
func (r *run) removeFirst(ctx context.Context, res deployment.Result, what string) deployment.Result {
	r.emit(task.PhaseRestoring, fmt.Sprintf("removing release %s: nothing served before", r.job.Release.Version))
	if err := r.uninstall(ctx); err != nil {
		res.Message = what + ", and removing it failed as well: look at the cluster"
		res.Error += "; " + oneLine(err.Error())
		return res
	}
	res.Message = what + "; it was removed; nothing served before"
	return res
}
