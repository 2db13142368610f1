package deploy

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Causes of the end of a context.
var (
	ErrTimeout        = errors.New("the time is up")
	ErrRestoreTimeout = errors.New("the time to restore is up")
)

// lastDiagnosis bounds the search for the reason why restoring failed. All limits
// may be used up by then; the runner allows for this one.
const lastDiagnosis = 20 * time.Second

// IsLate reports whether err is that the time was up.
func IsLate(err error) bool {
	return errors.Is(err, ErrTimeout) || errors.Is(err, ErrRestoreTimeout)
}

// flow is one job on its way.
type flow struct {
	job      *protocol.Job
	report   *Report
	approve  func(context.Context) error
	backend  Backend
	observed Observation

	asked  bool
	denied error // what approve answered

	abandoned bool // a step before the approval did not end: nothing more is asked of the backend
}

// Run carries out job and returns what came of it. Approve asks the runner for
// approval to change what serves; its error means no, and says why. The end of ctx
// interrupts: what served before is restored, within the job's limit; the cause of
// ctx's end becomes part of the Result. The Result is masked.
func Run(ctx context.Context, job protocol.Job, report *Report, approve func(context.Context) error, open Factory) protocol.Result {
	f := &flow{job: &job, report: report, approve: approve}
	defer report.flush()
	return report.masked(f.run(ctx, open))
}

func (f *flow) run(ctx context.Context, open Factory) protocol.Result {
	if f.job.Timeout > 0 { // another one is refused below
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, f.job.Timeout, ErrTimeout)
		defer cancel()
	}
	var backend Backend
	err := f.prepare(ctx, func() (err error) {
		backend, err = open(f.job, f.report)
		return err
	})
	if err != nil {
		return f.refused(err)
	}
	f.backend = backend
	defer func() {
		if !f.abandoned {
			f.backend.Close()
		}
	}()
	if err := check(*f.job); err != nil {
		return f.refused(err)
	}
	f.report.Event(task.PhasePreflight, "checking %s", f.what())

	request := requestOf(*f.job)
	if err := f.observe(ctx, request); err != nil {
		if request == RequestRecover {
			return f.unknown(f.died(), f.diedHalfway(), err)
		}
		return f.refused(err)
	}
	switch f.action() {
	case ActApply, ActApplyOrRestore:
		return f.apply(ctx)
	case ActConfirm:
		return f.confirm(ctx)
	case ActRestore:
		return f.restoreInterrupted(ctx)
	case ActReport:
		return f.stays()
	default:
		return f.refused(errors.New(f.observed.Reason))
	}
}

// check refuses a job that no backend could carry out.
func check(job protocol.Job) error {
	switch {
	case job.Timeout <= 0 || job.RestoreTimeout <= 0:
		return errors.New("the job's timeouts must be positive")
	case job.Action != protocol.ActionDeploy && job.Action != protocol.ActionRecover:
		return fmt.Errorf("the job asks for the unknown action %q", job.Action)
	}
	return nil
}

// observe finds out how things stand. After the death of a process it does so also
// when the flow is interrupted.
func (f *flow) observe(ctx context.Context, request Request) (err error) {
	if request == RequestRecover {
		var cancel context.CancelFunc
		ctx, cancel = f.restoreContext(ctx)
		defer cancel()
	}
	var observed Observation
	err = f.prepare(ctx, func() (err error) {
		observed, err = f.backend.Observe(ctx)
		return err
	})
	if err == nil {
		f.observed = observed
	}
	return err
}

// abandonAfter is how long a step that changes nothing may go on when ctx has ended.
const abandonAfter = 10 * time.Second

// prepare takes a step that changes nothing that serves. One that does not end with
// ctx, as libraries that parse what people wrote can be made to do, is abandoned:
// it ends with this process, which has nothing more to do then but to tell the result.
func (f *flow) prepare(ctx context.Context, step func() error) error {
	done := make(chan func() error, 1)
	go func() {
		end := func() error { runtime.Goexit(); return nil }
		defer func() {
			if p := recover(); p != nil {
				stack := debug.Stack()
				end = func() error { panic(fmt.Sprintf("%v\n%s", p, stack)) }
			}
			done <- end
		}()
		err := step()
		end = func() error { return err }
	}()
	select {
	case end := <-done:
		return end()
	case <-ctx.Done():
	}
	select {
	case end := <-done:
		return end()
	case <-time.After(abandonAfter):
		f.abandoned = true
		return fmt.Errorf("%w: reading the release did not end, and was given up", context.Cause(ctx))
	}
}

// action returns what the table says.
func (f *flow) action() Action { return Table[f.observed.State][requestOf(*f.job)] }

// ask asks for approval to change what serves, once: a second question has the
// answer of the first.
func (f *flow) ask(ctx context.Context) error {
	if !f.asked {
		f.asked, f.denied = true, f.approve(ctx)
	}
	return f.denied
}

// restoreContext returns a context that outlives an interruption and a deadline,
// for as long as restoring may take.
func (f *flow) restoreContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), f.job.RestoreTimeout, ErrRestoreTimeout)
}

// diagnose finds out why err came about, for as long as limit, whatever became of ctx.
func (f *flow) diagnose(ctx context.Context, limit time.Duration, err error) Diagnosis {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, ErrRestoreTimeout)
	defer cancel()
	d := f.backend.Diagnose(ctx, err)
	if d.Cause == "" && !d.Late {
		d.Cause, d.Late = f.plain(err).Cause, IsLate(err)
	}
	d.Cause = f.quote(d.Cause)
	return d
}
