package deploy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// MaxCause bounds what a sentence quotes of an error, in bytes.
const MaxCause = 1 << 10

// what names the job's release to people.
func (f *flow) what() string {
	if v := f.job.Release.Version; v != "" {
		return "release " + v
	}
	return "the previous release"
}

// died is the sentence about the process that a job to recover follows, and
// diedHalfway the one about what it was to do.
func (f *flow) died() string { return "the deployment process died while it brought up " + f.what() }

func (f *flow) diedHalfway() string {
	return fmt.Sprintf("the deployment of %s died half-way", f.what())
}

// Sentence says why the job's release did not come up. The caller has masked d.Cause.
func Sentence(job protocol.Job, d Diagnosis) string {
	text := fmt.Sprintf("release %s did not come up", job.Release.Version)
	if d.Late {
		text = fmt.Sprintf("release %s was not up after %s", job.Release.Version, job.Timeout)
	}
	if d.Cause != "" {
		text += ": " + task.Shorten(d.Cause, MaxCause)
	}
	return text
}

// plain is the Diagnosis of an error about which nothing more is known.
func (f *flow) plain(err error) Diagnosis {
	if IsLate(err) {
		return Diagnosis{Late: true}
	}
	return Diagnosis{Cause: f.quote(err.Error())}
}

// quote makes of text what a sentence quotes. It is masked first: of a secret that
// was cut, the rest would not be found.
func (f *flow) quote(text string) string { return task.Shorten(f.report.Line(text), MaxCause) }

// refused is the Result of a job that changed nothing.
func (f *flow) refused(err error) protocol.Result {
	text := f.report.Line(err.Error())
	if errors.Is(err, ErrTimeout) {
		_, why, _ := strings.Cut(text, ErrTimeout.Error())
		text = fmt.Sprintf("the preparations were not done after %s%s", f.job.Timeout, why)
	}
	res := protocol.Result{Message: f.what() + " was not deployed, and nothing was changed", Error: text}
	switch {
	case f.observed.Unsettled != "":
		res.ServingUnknown = true
		res.Message += "; what serves is not known, for " + f.observed.Unsettled
	case f.job.Previous != nil && f.job.Action == protocol.ActionDeploy:
		res.Serving = f.job.Previous.Version
	}
	return res
}

// unknown is the Result when nobody can tell what serves: failure is what is
// known about the failure, what begins the message, and err is why no more is known.
func (f *flow) unknown(failure, what string, err error) protocol.Result {
	return protocol.Result{
		Changed: true,
		Message: fmt.Sprintf("%s, and what serves now is not known: look at %s", what, f.backend.Names().Place),
		Error:   failure + "; " + f.report.Line(err.Error()),
	}
}

// stays is the Result after the death of a process that left nothing to undo.
func (f *flow) stays() protocol.Result {
	o := f.observed
	res := protocol.Result{Changed: true, Message: f.diedHalfway(), Error: f.died()} // changed, so that Serving is believed
	if o.Restored {
		res.Restored, res.Serving, res.HelmRevision = true, o.Serves.Version, o.Serves.Revision
		res.Message += fmt.Sprintf("; release %s was restored before that and serves%s", o.Serves.Version, o.Serves.Detail)
		return res
	}
	if o.Leftover != "" {
		res.Message += fmt.Sprintf("; %s was left behind, and another one was brought up since", o.Leftover)
	} else {
		res.Message += " before anything was recorded"
	}
	if o.Reason != "" {
		res.Error += "; " + o.Reason
	}
	f.serves(&res, o.Serves)
	return res
}

// serves fills in what serves.
func (f *flow) serves(res *protocol.Result, s Serves) {
	if why := f.observed.Unsettled; why != "" && s == f.observed.Serves {
		res.Message += "; what serves is not known, for " + why
		return
	}
	if s.Version == "" {
		res.Message += "; nothing serves"
		return
	}
	res.Serving, res.HelmRevision = s.Version, s.Revision
	res.Message += fmt.Sprintf("; release %s serves%s", s.Version, s.Detail)
}
