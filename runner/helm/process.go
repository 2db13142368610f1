package helm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/process"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

const (
	// recordTime is what a child's own deadline comes earlier than ours, at most:
	// it should record by itself that it failed. Then it is killed.
	recordTime = 5 * time.Second

	// maxEvent bounds an event, in bytes: it may hold all the secrets of a release.
	maxEvent = 64 << 20
)

// until returns when a child that runs under ctx, which has a deadline, is to
// give up.
func until(ctx context.Context) time.Time {
	end, _ := ctx.Deadline()
	return end.Add(-min(recordTime, time.Until(end)/10))
}

// step is a child process that carries out one command.
type step struct {
	report  *deploy.Report
	process *process.Process
	events  chan event
	stderr  process.Tail // complete when the process is done

	killed  error             // why we killed it, nil when we did not
	hook    *deploy.Diagnosis // why a hook failed, nil when none did
	last    *event            // the one with Done, nil when there was none
	outcome outcome           // complete when run has returned false
}

// outcome is what came of a step.
type outcome struct {
	err      error // nil: done; otherwise a *failure, unless the process could not be started
	changed  bool  // the cluster may have been changed
	revision int   // the one that was recorded, 0 for none
	// notUndone says what of earlier revisions stays that should not, and why.
	notUndone []string
}

// failure is why a step did not do what it was to do.
type failure struct {
	err      error
	late     bool              // the time was up
	killed   bool              // by us, or by itself: it did not come to an end
	hook     *deploy.Diagnosis // why a hook failed, nil when none did
	revision int               // the one that was recorded, 0 for none
	before   error             // why the try before this one failed, nil for none
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// failureOf returns what is known about err, nil when that is nil.
func failureOf(err error) *failure {
	var f *failure
	if err != nil && !errors.As(err, &f) {
		f = &failure{err: err, late: deploy.IsLate(err)}
	}
	return f
}

// start starts this program again to carry out c. The child stays in our process
// group, so that whoever kills that reaches both, and it dies with us.
func (b *backend) start(ctx context.Context, c command) (*step, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, failureOf(err)
	}
	c.Job, c.Until = *b.job, until(ctx)
	s := &step{report: b.report, events: make(chan event)}
	p, err := process.Start(process.Command{
		// By /proc, since an upgrade of the package may have replaced the file.
		Path: process.Self, Args: []string{StepArg}, Env: os.Environ(),
		DeathSignal: syscall.SIGKILL,
		Outputs: []process.Output{
			process.Copy(b.report.Log(), 1),
			process.Lines(deploy.MaxTailLine, s.addStderr, 2),
			process.JSON(maxEvent, func(e event) { s.events <- e }, eventFD),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start the helm process: %w", err)
	}
	s.process = p
	_ = p.Send(c) // fails when it ended at once; its exit says how
	return s, nil
}

// addStderr passes on what the child prints to standard error, and keeps what
// tells why it died.
func (s *step) addStderr(line []byte, _ int) {
	s.stderr.Add(line)
	_, _ = fmt.Fprintf(s.report.Log(), "%s\n", line) // a log that cannot be written stops nothing
}

// run follows the step until it waits for approval, which it reports, or until it
// has ended. The end of ctx kills it.
func (s *step) run(ctx context.Context) (awaitsApproval bool) {
	stop := ctx.Done()
	for {
		select {
		case <-stop:
			stop = nil
			s.kill(context.Cause(ctx))
		case e := <-s.events:
			if s.handle(e) {
				return true
			}
		case <-s.process.Done():
			s.outcome.err = s.failure()
			return false
		}
	}
}

// kill ends the step because of err. The API may still finish the request it was
// in; what follows observes first, and applies over it.
func (s *step) kill(err error) {
	s.killed = err
	s.process.Kill()
}

// approve lets a step go on that waits for it. One that does not listen has ended;
// its exit says why.
func (s *step) approve(a approval) { _ = s.process.Send(a) }

// handle takes in an event and reports whether it asks for approval.
func (s *step) handle(e event) (asks bool) {
	switch {
	case e.Done:
		s.last = &e
	case e.Changed:
		s.outcome.changed = true
	case e.Created != 0:
		s.outcome.changed, s.outcome.revision = true, e.Created
	case s.killed != nil:
	case e.AwaitsApproval:
		return true
	case e.Secrets != nil:
		s.report.Learn(e.Secrets...)
		s.approve(approval{})
	case e.Phase != "":
		s.report.Event(e.Phase, "%s", e.Text)
	case e.NotUndone != "":
		s.report.Event(task.PhaseApplying, "what an earlier revision left could not be undone: %s", e.NotUndone)
		s.outcome.notUndone = append(s.outcome.notUndone, e.NotUndone)
	case e.Hook != nil && s.hook == nil: // what follows a failure is not its cause
		s.hook = e.Hook
	}
	return false
}

// failure returns why a step that has ended did not do what it was to do, nil
// when it did.
func (s *step) failure() error {
	f := &failure{hook: s.hook, revision: s.outcome.revision}
	switch {
	case s.last != nil && s.last.Error == "": // perhaps in the very moment of the kill
		return nil
	case s.killed != nil:
		f.err, f.killed = s.killed, true
	case s.last != nil:
		f.err, f.late = errors.New(s.last.Error), s.last.Late
	default:
		f.err, f.killed = fmt.Errorf("the helm process died: %s", s.deathReason()), true
	}
	f.late = f.late || deploy.IsLate(f.err)
	return f
}

// deathReason says why a step ended that had not come to its end.
func (s *step) deathReason() string {
	switch crash := s.stderr.Crash; {
	case strings.Contains(crash, "out of memory"):
		return fmt.Sprintf("the chart took more than %d MiB of memory", maxMemory>>20)
	case strings.Contains(crash, "stack overflow"):
		return "the chart recursed too deeply"
	case crash != "":
		return task.SafeText(s.report.Line(crash), deploy.MaxQuote)
	}
	state := s.process.State()
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Sprintf("signal %d (%s)", ws.Signal(), ws.Signal())
	}
	if state.Success() {
		return "it ended without a word"
	}
	return state.String()
}
