package deploy

import (
	"context"
	"fmt"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// apply makes the job's release serve.
func (f *flow) apply(ctx context.Context) protocol.Result {
	err := f.prepare(ctx, func() error { return f.backend.Preflight(ctx) })
	if err == nil {
		err = f.ask(ctx)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	var applied Applied
	if err == nil {
		applied, err = f.backend.Apply(ctx)
	}
	switch {
	case err == nil:
		return f.succeeded(ctx, applied)
	case applied.Changed:
		return f.failed(ctx, err)
	case f.action() == ActApplyOrRestore && !f.abandoned:
		return f.refusedHalfway(ctx, err)
	default:
		return f.refused(err)
	}
}

// confirm follows a process that applied the release and could not tell any more
// what came of it.
func (f *flow) confirm(ctx context.Context) protocol.Result {
	applied, err := f.backend.Confirm(ctx)
	if err == nil {
		return f.succeeded(ctx, applied)
	}
	asking, cancel := f.restoreContext(ctx)
	defer cancel()
	if denied := f.ask(asking); denied != nil {
		version := f.job.Release.Version
		return protocol.Result{
			Changed: true, Serving: version, HelmRevision: applied.Revision,
			Message: fmt.Sprintf("release %s is deployed%s, but it is not up, and it was left as it is", version, applied.Detail),
			Error:   Sentence(*f.job, f.plain(err)) + "; " + f.report.Line(denied.Error()),
		}
	}
	return f.failed(ctx, err)
}

// failed finds the cause of a failure, and brings back what served before. A search
// for the cause that hangs takes half the time to restore, not all of it.
func (f *flow) failed(ctx context.Context, err error) protocol.Result {
	ctx, cancel := f.restoreContext(ctx)
	defer cancel()
	d := f.diagnose(ctx, f.job.RestoreTimeout/2, err)
	if d.Up != nil {
		return f.succeeded(ctx, *d.Up)
	}
	res := protocol.Result{Changed: true, Error: Sentence(*f.job, d), LogTail: d.Tail}
	f.report.Note("%s", res.Error)
	what := fmt.Sprintf("release %s failed", f.job.Release.Version)
	if requestOf(*f.job) == RequestRecover {
		res.Error = f.died() + "; " + res.Error
		what = f.diedHalfway()
	}
	return f.restore(ctx, res, what)
}

// succeeded is the Result of a release that is up, which an interruption does not
// change any more.
func (f *flow) succeeded(ctx context.Context, applied Applied) protocol.Result {
	ctx, cancel := f.restoreContext(ctx)
	defer cancel()
	f.backend.CleanUp(ctx, false)
	rel := f.job.Release
	return protocol.Result{
		Succeeded: true, Changed: true,
		Message:    fmt.Sprintf("release %s is up%s", rel.Version, applied.Detail),
		ArtifactID: rel.ArtifactID, Serving: rel.Version, HelmRevision: applied.Revision,
	}
}
