package deploy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// TestLimits checks how long each step may take when the ones before it took their
// time: the release has one limit from beginning to end, and restoring one of its own.
func TestLimits(t *testing.T) {
	const minute = time.Minute
	s := newScenario(deploy.StateServing, deploy.RequestDeploy, map[string]fault{apply: fails, restore: hangs})
	s.takes = map[string]time.Duration{observe: minute, preflight: 2 * minute, approval: minute, apply: 3 * minute, diagnose: 10 * time.Second, former: minute}
	s.run(t).check(t)
	want := map[string]time.Duration{
		observe: 10 * minute, preflight: 9 * minute, approval: 7 * minute, apply: 6 * minute,
		former: 4*minute - 10*time.Second, restore: 3*minute - 10*time.Second,
		diagnose: 20 * time.Second, // the second one, when the time to restore is up
	}
	for step, limit := range want {
		if s.left[step] != limit {
			t.Errorf("%s may take %s, not %s", step, s.left[step], limit)
		}
	}

	s = newScenario(deploy.StateInterrupted, deploy.RequestRecover, nil)
	s.takes = map[string]time.Duration{observe: 3 * minute, approval: minute}
	s.run(t).check(t)
	want = map[string]time.Duration{observe: 4 * minute, approval: 4 * minute, former: 3 * minute, restore: 3 * minute}
	for step, limit := range want {
		if s.left[step] != limit {
			t.Errorf("to recover: %s may take %s, not %s", step, s.left[step], limit)
		}
	}

	s = newScenario(deploy.StateServing, deploy.RequestDeploy, map[string]fault{apply: fails, diagnose: hangs})
	if s.run(t).check(t); s.left[diagnose] != 2*minute || s.left[restore] != 2*minute || !s.result.Restored {
		t.Errorf("a search for the cause that hangs leaves %s of %s: %+v", s.left[restore], s.left[diagnose], s.result)
	}

	s = newScenario(deploy.StateServing, deploy.RequestDeploy, map[string]fault{cleanUp: hangs})
	s.takes = map[string]time.Duration{apply: 9 * minute}
	if s.run(t).check(t); s.left[cleanUp] != 4*minute || !s.result.Succeeded {
		t.Errorf("cleaning up may take %s: %+v", s.left[cleanUp], s.result)
	}
}

// TestLate checks when time is up, and what is said then.
func TestLate(t *testing.T) {
	const notDone, died = "the preparations were not done after 10m0s", "the deployment process died while it brought up release 2.0"
	for _, c := range []struct {
		state   deploy.State
		request deploy.Request
		hangs   string
		elapsed time.Duration
		want    string
	}{
		{deploy.StateServing, deploy.RequestDeploy, observe, timeout, notDone},
		{deploy.StateServing, deploy.RequestDeploy, preflight, timeout, notDone},
		{deploy.StateServing, deploy.RequestDeploy, approval, timeout, notDone},
		{deploy.StateServing, deploy.RequestDeploy, apply, timeout, `release 2.0 was not up after 10m0s: service "web" is starting`},
		{deploy.StateApplied, deploy.RequestDeploy, confirm, timeout, `release 2.0 was not up after 10m0s: service "web" is starting`},
		{deploy.StateApplied, deploy.RequestRecover, confirm, timeout, died + `; release 2.0 was not up after 10m0s: service "web" is starting`},
		{deploy.StateInterrupted, deploy.RequestRecover, observe, restoreTimeout, died + "; the time to restore is up"},
		{deploy.StateInterrupted, deploy.RequestRecover, approval, restoreTimeout, died + "; the time to restore is up"},
		{deploy.StateInterrupted, deploy.RequestRecover, former, restoreTimeout, died + "; the time to restore is up"},
		{deploy.StateInterrupted, deploy.RequestRecover, restore, restoreTimeout, died + `; RESTORING release 1.0 FAILED as well: it was not up after 4m0s: service "web" is starting`},
	} {
		t.Run(fmt.Sprintf("%s, %s: %s", c.state, c.request, c.hangs), func(t *testing.T) {
			s := newScenario(c.state, c.request, map[string]fault{c.hangs: hangs}).run(t)
			s.check(t)
			if s.elapsed != c.elapsed || s.result.Error != c.want {
				t.Errorf("after %s: %s\nnot %s: %s", s.elapsed, s.result.Error, c.elapsed, c.want)
			}
		})
	}
}

// TestAbandoned leaves behind a step that goes on after its time, as parsing can.
func TestAbandoned(t *testing.T) {
	for _, c := range []struct {
		state   deploy.State
		request deploy.Request
		step    string
		elapsed time.Duration
		calls   string
		want    string
	}{
		{deploy.StateServing, deploy.RequestDeploy, preflight, timeout, "observe, preflight", "the preparations were not done after 10m0s: reading the release did not end, and was given up"},
		{deploy.StateInterrupted, deploy.RequestDeploy, preflight, timeout, "observe, preflight", "the preparations were not done after 10m0s: reading the release did not end, and was given up"},
		{deploy.StateInterrupted, deploy.RequestRecover, observe, restoreTimeout, "observe", "the deployment process died while it brought up release 2.0; the time to restore is up: reading the release did not end, and was given up"},
	} {
		t.Run(fmt.Sprintf("%s, %s: %s", c.state, c.request, c.step), func(t *testing.T) {
			s := newScenario(c.state, c.request, map[string]fault{c.step: ignores}).run(t)
			if s.result.Error != c.want || s.path() != c.calls || s.elapsed != c.elapsed+10*time.Second {
				t.Errorf("after %s: %s: %s\nwant %s: %s", s.elapsed, s.path(), s.result.Error, c.calls, c.want)
			}
		})
	}
}

// TestLateWhy keeps what a backend adds to its error that the time is up.
func TestLateWhy(t *testing.T) {
	s := newScenario(deploy.StateServing, deploy.RequestDeploy, map[string]fault{preflight: fails})
	s.errors = map[string]error{preflight: fmt.Errorf("pull: %w: image web is not complete", deploy.ErrTimeout)}
	if s.run(t); s.result.Error != "the preparations were not done after 10m0s: image web is not complete" {
		t.Error(s.result.Error)
	}
	// Nothing is known of why it was late.
	s = newScenario(deploy.StateServing, deploy.RequestDeploy, map[string]fault{apply: hangs, diagnose: fails, restore: hangs})
	s.run(t).check(t)
	if want := "release 2.0 was not up after 10m0s; RESTORING release 1.0 FAILED as well: it was not up after 4m0s"; s.result.Error != want {
		t.Errorf("%s\nnot %s", s.result.Error, want)
	}
}

// TestMaskedBeforeCut lets the cut of a long cause go through a secret.
func TestMaskedBeforeCut(t *testing.T) {
	for at := 990; at < 1030; at++ {
		for _, step := range []string{apply, restore} {
			s := newScenario(deploy.StateServing, deploy.RequestDeploy, map[string]fault{apply: fails, step: fails})
			s.errors = map[string]error{step: fmt.Errorf("%s%s", strings.Repeat("x", at), secret)}
			s.run(t).check(t)
			if strings.Contains(s.result.Error, "xopen") || len(s.result.Error) > 2200 {
				t.Fatalf("%s: a cause of %d bytes before a secret: %s", step, at, s.result.Error)
			}
		}
	}
}
