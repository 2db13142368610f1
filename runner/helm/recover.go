package helm

import (
	"context"
	"fmt"
	"time"

	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// recover follows a process that died on the same job. It observes first: a
// release that is recorded as deployed only has to be up; anything half-way
// gives way to what served before.
func (r *run) recover(ctx context.Context) deployment.Result {
	rctx, cancel := r.restoreContext(ctx)
	defer cancel()
	what := fmt.Sprintf("the deployment of %s died half-way", r.what())
	res := deployment.Result{
		Error: "the deployment process died while it brought up " + r.what(),
	}
	now, err := r.patiently(rctx)
	if err == nil && !ofTask(now.last(), r.job) && now.leftHalfway(r.job) == nil {
		// What the dead process asked for last may still be on its way.
		select {
		case <-time.After(retryDelay):
		case <-rctx.Done():
		}
		now, err = r.patiently(rctx)
	}
	if err != nil {
		res.Touched = true
		return r.unknown(res, what, err)
	}
	last, left := now.last(), now.leftHalfway(r.job)
	switch {
	case applied(last, r.job, r.values):
		return r.confirm(ctx, now)
	case last == nil:
		res.Touched = true // so that nothing serving is believed
		res.Message = what + " before anything was recorded; nothing serves"
		return res
	case !ofTask(last, r.job) && (left == nil || last.Info.Status == release.StatusDeployed):
		res.Message = what + " before anything was recorded"
		if left != nil {
			res.Message = fmt.Sprintf("%s; revision %d was left behind, and another one was brought up since", what, left.Version)
		}
		res.Touched = true // so that Serving below is believed
		if pending := now.pending(); len(pending) > 0 {
			res.Error += fmt.Sprintf("; revision %d is %s, left or being worked on by somebody else", pending[0].Version, pending[0].Info.Status)
		}
		r.serves(&res, now.serving())
		return res
	case isRestore(last) && last.Info.Status == release.StatusDeployed:
		res.Touched, res.Restored = true, true
		res.Serving, res.HelmRevision = versionOf(last, r.job), last.Version
		res.Message = fmt.Sprintf("%s; release %s was restored before that and serves as revision %d", what, res.Serving, last.Version)
		return res
	}
	// Also when interrupted: half-way is the one state that must not stay.
	res.Touched = true
	if err := r.ask(rctx); err != nil {
		res.Message = what + ", and it was left as it is"
		res.Error += "; " + oneLine(err.Error())
		return res
	}
	return r.restore(rctx, res, now, last, what)
}
