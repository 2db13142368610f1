package deploy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// The steps of a deployment, as the backend made for tests sees them.
const (
	observe   = "observe"
	preflight = "preflight"
	approval  = "approval"
	apply     = "apply"
	confirm   = "confirm"
	diagnose  = "diagnose"
	former    = "former"
	restore   = "restore"
	remove    = "remove"
	cleanUp   = "clean up"
	closing   = "close"
)

var steps = []string{observe, preflight, approval, apply, confirm, diagnose, former, restore, remove, cleanUp}

// A fault is what a step does instead of succeeding.
type fault int

const (
	fails      fault = iota + 1
	refuses          // of apply: it fails before anything was changed
	hangs            // until its context ends
	interrupts       // the deployment is interrupted meanwhile
	dies             // the process ends
	ignores          // goes on for an hour, whatever becomes of its context
)

func (f fault) String() string {
	return [...]string{"succeeds", "fails", "refuses", "hangs", "is interrupted", "dies", "ignores"}[f]
}

const (
	timeout        = 10 * time.Minute
	restoreTimeout = 4 * time.Minute
	// secret has two blanks in a row: once they are joined it is not found any more.
	secret = "open  sesame 4711"
)

var errInterrupted = errors.New("the deployment was interrupted")

// scenario is one deployment over a backend made for tests, which is told how
// each step ends.
type scenario struct {
	job       protocol.Job
	observed  deploy.Observation
	former    deploy.Former
	diagnosis *deploy.Diagnosis        // nil: what err says
	faults    map[string]fault         // by step
	takes     map[string]time.Duration // by step, before it ends
	errors    map[string]error         // by step, instead of its usual error

	report    *deploy.Report
	interrupt context.CancelCauseFunc

	calls    []string
	left     map[string]time.Duration // by step: how long its context still lasted when it began
	problems []string                 // what the flow must never do
	approved bool
	tooLate  bool // the approval comes when the flow has been interrupted
	died     bool
	events   []task.Event
	log      bytes.Buffer
	elapsed  time.Duration
	result   protocol.Result
}

// newScenario returns the deployment of release 2.0 in place of release 1.0.
func newScenario(state deploy.State, request deploy.Request, faults map[string]fault) *scenario {
	s := &scenario{
		job: protocol.Job{
			Action: protocol.ActionDeploy, Kind: task.KindDeploy,
			Release:  protocol.Release{ArtifactID: "a2", Version: "2.0"},
			Previous: &protocol.Release{ArtifactID: "a1", Version: "1.0"},
			Timeout:  timeout, RestoreTimeout: restoreTimeout,
		},
		observed: deploy.Observation{State: state},
		former:   deploy.Former{Way: deploy.BringBack, Version: "1.0", Revision: 1},
		faults:   faults,
	}
	switch request {
	case deploy.RequestRollback:
		s.job.Kind = task.KindRollback
	case deploy.RequestRecover:
		s.job.Action = protocol.ActionRecover
	}
	if state != deploy.StateAbsent {
		s.observed.Serves = deploy.Serves{Version: "1.0", Detail: " as revision 1", Revision: 1}
	}
	switch state {
	case deploy.StateInterrupted, deploy.StateFailed:
		s.observed.Leftover = "revision 2"
	case deploy.StateLocked:
		s.observed.Reason = "revision 2 is pending-upgrade"
	}
	return s
}

// run carries the deployment out, at once whatever it waits for.
func (s *scenario) run(t *testing.T) *scenario {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		s.runInBubble()
		time.Sleep(2 * time.Hour) // until what the flow has abandoned is over
	})
	return s
}

// runInBubble is run, for several within one synctest bubble.
func (s *scenario) runInBubble() {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s.interrupt, s.left = cancel, map[string]time.Duration{}
	s.report = deploy.NewReport(&s.log, func(e task.Event) { s.events = append(s.events, e) })
	open := func(job *protocol.Job, report *deploy.Report) (deploy.Backend, error) {
		s.job = *job
		report.Learn(map[string]string{"DB_PASSWORD": secret})
		return s, s.errors["open"]
	}
	began, s0 := time.Now(), s.job
	s.died = true
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.result = deploy.Run(ctx, s0, s.report, s.approve, open)
		s.died = false
	}()
	<-done
	s.elapsed = time.Since(began)
}

// step is one call of the flow: it notes what is called and how long it may take,
// and ends as the scenario says.
func (s *scenario) step(ctx context.Context, name string) error {
	s.calls = append(s.calls, name)
	deadline, limited := ctx.Deadline()
	if !limited {
		s.problem("%s has no limit", name)
		return nil
	}
	if _, twice := s.left[name]; twice && name != diagnose {
		s.problem("%s is called twice", name)
	}
	s.left[name] = time.Until(deadline)
	if wayBack := slices.Contains([]string{diagnose, former, restore, remove, cleanUp}, name); wayBack && ctx.Err() != nil {
		s.problem("%s begins with a context that has ended: %v", name, context.Cause(ctx))
	}
	if changes := slices.Contains([]string{apply, restore, remove}, name); changes && !s.approved {
		s.problem("%s is called without approval", name)
	}
	s.report.Event(task.PhaseWaiting, "%s with %s", name, secret)
	s.report.Note("%s with %s", name, secret)
	_, _ = s.report.Log().Write([]byte("the library connects with open "))
	_, _ = s.report.Log().Write([]byte(" sesame 4711\nand goes on\n"))
	select {
	case <-time.After(s.takes[name]):
	case <-ctx.Done():
	}
	failure := fmt.Errorf("%s failed:\n  %s is wrong", name, secret)
	if err := s.errors[name]; err != nil {
		failure = err
	}
	switch s.faults[name] {
	case fails, refuses:
		return failure
	case dies:
		runtime.Goexit()
	case hangs:
		<-ctx.Done()
	case ignores:
		time.Sleep(time.Hour)
	case interrupts:
		s.interrupt(errInterrupted)
	}
	return context.Cause(ctx)
}

func (s *scenario) problem(format string, args ...any) {
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

func (s *scenario) approve(ctx context.Context) error {
	err := s.step(ctx, approval)
	s.approved = err == nil
	if s.tooLate {
		s.interrupt(errInterrupted)
	}
	return err
}

func (s *scenario) Names() deploy.Names {
	return deploy.Names{Place: "the cluster", Removed: "it was removed"}
}

func (s *scenario) Observe(ctx context.Context) (deploy.Observation, error) {
	return s.observed, s.step(ctx, observe)
}

func (s *scenario) Preflight(ctx context.Context) error { return s.step(ctx, preflight) }

func (s *scenario) Apply(ctx context.Context) (deploy.Applied, error) {
	err := s.step(ctx, apply)
	return deploy.Applied{Changed: s.faults[apply] != refuses, Revision: 2, Detail: " as revision 2"}, err
}

func (s *scenario) Confirm(ctx context.Context) (deploy.Applied, error) {
	return deploy.Applied{Changed: true, Revision: 2, Detail: " as revision 2"}, s.step(ctx, confirm)
}

func (s *scenario) Diagnose(ctx context.Context, err error) deploy.Diagnosis {
	unknown := s.step(ctx, diagnose)
	tail := []string{"web: cannot connect with " + secret}
	switch {
	case s.diagnosis != nil:
		return *s.diagnosis
	case unknown != nil:
		return deploy.Diagnosis{}
	case deploy.IsLate(err):
		return deploy.Diagnosis{Late: true, Cause: `service "web" is starting`, Tail: tail}
	default:
		return deploy.Diagnosis{Cause: err.Error(), Tail: tail}
	}
}

func (s *scenario) Former(ctx context.Context) (deploy.Former, error) {
	return s.former, s.step(ctx, former)
}

func (s *scenario) Restore(ctx context.Context, back deploy.Former) (deploy.Applied, error) {
	if back.Version != s.former.Version || back.Revision != s.former.Revision {
		s.problem("restore is given %+v", back)
	}
	return deploy.Applied{Changed: true, Revision: 3, Detail: " as revision 3"}, s.step(ctx, restore)
}

func (s *scenario) Remove(ctx context.Context) error { return s.step(ctx, remove) }

func (s *scenario) CleanUp(ctx context.Context, restored bool) {
	if restored != slices.Contains(s.calls, restore) {
		s.problem("clean up is told restored: %v", restored)
	}
	_ = s.step(ctx, cleanUp) // changes nothing about the outcome
}

func (s *scenario) Close() { s.calls = append(s.calls, closing) }

// path is what was called, in order.
func (s *scenario) path() string { return strings.Join(s.calls, ", ") }

// violations says what the flow did that it must never do.
func (s *scenario) violations() []string {
	problems := slices.Clone(s.problems)
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if n := len(s.calls); n > 0 && slices.Index(s.calls, closing) != n-1 {
		bad("close is not called once and last")
	}
	// The runner kills what takes longer: the job's limits and a minute, and once
	// more the time to restore for a process that recovers.
	most := timeout + restoreTimeout + time.Minute
	if s.job.Action == protocol.ActionRecover || s.observed.State == deploy.StateApplied {
		most += restoreTimeout
	}
	if s.elapsed > most {
		bad("it took %s", s.elapsed)
	}
	texts := []string{s.result.Message, s.result.Error, s.log.String()}
	texts = append(texts, s.result.LogTail...)
	for _, e := range s.events {
		texts = append(texts, e.Text)
	}
	for _, text := range texts {
		if strings.Contains(strings.Join(strings.Fields(text), " "), "sesame") {
			bad("a secret shows: %q", text)
		}
	}
	if s.died {
		return problems
	}
	for _, text := range texts[:2] {
		if strings.ContainsAny(text, "\r\n\t") || strings.Contains(text, "  ") || strings.HasSuffix(text, ": ") || strings.HasSuffix(text, ":") {
			bad("not a sentence on one line: %q", text)
		}
	}
	res, called := s.result, func(step string) bool { return slices.Contains(s.calls, step) }
	switch {
	case res.Message == "", res.Succeeded == (res.Error != ""), res.Succeeded && res.Restored:
		bad("%+v", res)
	case res.Succeeded && (!res.Changed || res.Serving != "2.0"), res.Restored && res.Serving != "1.0":
		bad("%+v", res)
	case (called(restore) || called(remove)) && !res.Changed:
		bad("something was changed: %+v", res)
	case called(apply) && s.faults[apply] != refuses && !res.Succeeded && !called(former):
		bad("what was applied stays half-way: %+v", res)
	}
	return problems
}

// check reports every violation.
func (s *scenario) check(t *testing.T) {
	t.Helper()
	for _, p := range s.violations() {
		t.Errorf("%s\n\tcalled: %s", p, s.path())
	}
}
