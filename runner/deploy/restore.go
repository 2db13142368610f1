package deploy

import (
	"context"
	"fmt"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// restoreInterrupted follows a process that died half-way, also when the flow is
// interrupted itself.
func (f *flow) restoreInterrupted(ctx context.Context) protocol.Result {
	ctx, cancel := f.restoreContext(ctx)
	defer cancel()
	if err := f.ask(ctx); err != nil {
		return f.unknown(f.died(), f.diedHalfway(), err)
	}
	return f.restore(ctx, protocol.Result{Changed: true, Error: f.died()}, f.diedHalfway())
}

// refusedHalfway follows a release that was refused although an earlier attempt
// left the platform half applied: what served before that comes back all the same.
func (f *flow) refusedHalfway(ctx context.Context, err error) protocol.Result {
	ctx, cancel := f.restoreContext(ctx)
	defer cancel()
	res := f.refused(err)
	res.Changed, res.Serving = true, ""
	if f.ask(ctx) != nil {
		res.Message = fmt.Sprintf("%s was not deployed; %s, which died half-way, stays as it is", f.what(), f.observed.Leftover)
		return res
	}
	return f.restore(ctx, res, fmt.Sprintf("%s was not deployed; %s had died half-way", f.what(), f.observed.Leftover))
}

// restore makes serve again what did so before, and completes res, whose message
// begins with what.
func (f *flow) restore(ctx context.Context, res protocol.Result, what string) protocol.Result {
	back, err := f.backend.Former(ctx)
	if err != nil {
		return f.unknown(res.Error, what, err)
	}
	switch back.Way {
	case BringBack:
		return f.bringBack(ctx, res, what, back)
	case RemoveAll:
		return f.remove(ctx, res, what)
	}
	res.Message = what + back.Text
	if back.Serves != nil {
		f.serves(&res, *back.Serves)
	}
	return res
}

func (f *flow) bringBack(ctx context.Context, res protocol.Result, what string, back Former) protocol.Result {
	version := back.Version
	applied, err := f.backend.Restore(ctx, back)
	if err == nil {
		f.backend.CleanUp(ctx, true)
		res.Restored, res.Serving, res.HelmRevision = true, version, applied.Revision
		res.Message = fmt.Sprintf("%s; release %s was restored and serves%s", what, version, applied.Detail)
		return res
	}
	d := f.diagnose(ctx, lastDiagnosis, err)
	text := d.Cause
	if d.Late {
		text = fmt.Sprintf("it was not up after %s", f.job.RestoreTimeout)
		if d.Cause != "" {
			text += ": " + d.Cause
		}
	}
	f.report.Note("restoring release %s failed: %s", version, text)
	res.LogTail = append(res.LogTail, d.Tail...)
	res.Message = fmt.Sprintf("%s, and release %s could not be restored: nothing may serve now, look at %s", what, version, f.backend.Names().Place)
	res.Error += fmt.Sprintf("; RESTORING release %s FAILED as well: %s", version, text)
	return res
}

// remove removes a first installation that failed.
func (f *flow) remove(ctx context.Context, res protocol.Result, what string) protocol.Result {
	f.report.Event(task.PhaseRestoring, "removing release %s: nothing served before", f.job.Release.Version)
	if err := f.backend.Remove(ctx); err != nil {
		res.Message = fmt.Sprintf("%s, and removing it failed as well: look at %s", what, f.backend.Names().Place)
		res.Error += "; removing it failed as well: " + f.report.Line(err.Error())
		return res
	}
	res.Message = fmt.Sprintf("%s; %s; nothing served before", what, f.backend.Names().Removed)
	return res
}
