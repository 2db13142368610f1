package deploy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// TestFailures shows for each action what is called when a step does not succeed,
// and what is said.
func TestFailures(t *testing.T) {
	const (
		wrong       = " failed: ${DB_PASSWORD} is wrong"
		notUp       = "release 2.0 did not come up: "
		interrupted = "the deployment was interrupted"
		died        = "the deployment process died while it brought up release 2.0; "
		nothing     = "release 2.0 was not deployed, and nothing was changed"
		left        = "release 2.0 was not deployed; revision 2, which died half-way, stays as it is"
		restored    = "; release 1.0 was restored and serves as revision 3"
		unknown     = ", and what serves now is not known: look at the cluster"
		lost        = ", and release 1.0 could not be restored: nothing may serve now, look at the cluster"
	)
	type faults map[string]fault
	serving, stopped, applied := deploy.StateServing, deploy.StateInterrupted, deploy.StateApplied
	asked, recovery := deploy.RequestDeploy, deploy.RequestRecover
	for _, c := range []struct {
		state   deploy.State
		request deploy.Request
		faults  faults
		calls   string
		serves  string
		message string
		err     string
	}{
		// apply
		{serving, asked, faults{observe: fails}, "observe", "1.0", nothing, observe + wrong},
		{serving, asked, faults{observe: interrupts}, "observe", "1.0", nothing, interrupted},
		{serving, asked, faults{preflight: fails}, "observe, preflight", "1.0", nothing, preflight + wrong},
		{serving, asked, faults{approval: fails}, "observe, preflight, approval", "1.0", nothing, approval + wrong},
		{serving, asked, faults{approval: interrupts}, "observe, preflight, approval", "1.0", nothing, interrupted},
		{serving, asked, faults{apply: refuses}, "observe, preflight, approval, apply", "1.0", nothing, apply + wrong},
		{serving, asked, faults{apply: fails}, "observe, preflight, approval, apply, diagnose, former, restore, clean up", "1.0", "release 2.0 failed" + restored, notUp + apply + wrong},
		{serving, asked, faults{apply: interrupts}, "observe, preflight, approval, apply, diagnose, former, restore, clean up", "1.0", "release 2.0 failed" + restored, notUp + interrupted},
		{serving, asked, faults{apply: fails, diagnose: fails}, "observe, preflight, approval, apply, diagnose, former, restore, clean up", "1.0", "release 2.0 failed" + restored, notUp + apply + wrong},
		{serving, asked, faults{apply: fails, former: fails}, "observe, preflight, approval, apply, diagnose, former", "", "release 2.0 failed" + unknown, notUp + apply + wrong + "; " + former + wrong},
		{serving, asked, faults{apply: fails, restore: fails}, "observe, preflight, approval, apply, diagnose, former, restore, diagnose", "", "release 2.0 failed" + lost, notUp + apply + wrong + "; RESTORING release 1.0 FAILED as well: " + restore + wrong},
		{serving, asked, faults{apply: fails, restore: interrupts}, "observe, preflight, approval, apply, diagnose, former, restore, clean up", "1.0", "release 2.0 failed" + restored, notUp + apply + wrong},
		{serving, asked, faults{cleanUp: fails}, "observe, preflight, approval, apply, clean up", "2.0", "release 2.0 is up as revision 2", ""},
		{serving, asked, faults{cleanUp: interrupts}, "observe, preflight, approval, apply, clean up", "2.0", "release 2.0 is up as revision 2", ""},
		// apply, or restore when refused
		{stopped, asked, faults{observe: fails}, "observe", "1.0", nothing, observe + wrong},
		{stopped, asked, faults{preflight: fails}, "observe, preflight, approval, former, restore, clean up", "1.0", "release 2.0 was not deployed; revision 2 had died half-way" + restored, preflight + wrong},
		{stopped, asked, faults{preflight: interrupts}, "observe, preflight, approval, former, restore, clean up", "1.0", "release 2.0 was not deployed; revision 2 had died half-way" + restored, interrupted},
		{stopped, asked, faults{approval: fails}, "observe, preflight, approval", "", left, approval + wrong},
		{stopped, asked, faults{preflight: fails, approval: fails}, "observe, preflight, approval", "", left, preflight + wrong},
		{stopped, asked, faults{apply: refuses}, "observe, preflight, approval, apply, former, restore, clean up", "1.0", "release 2.0 was not deployed; revision 2 had died half-way" + restored, apply + wrong},
		{stopped, asked, faults{apply: fails}, "observe, preflight, approval, apply, diagnose, former, restore, clean up", "1.0", "release 2.0 failed" + restored, notUp + apply + wrong},
		// confirm
		{applied, asked, faults{confirm: fails}, "observe, confirm, approval, diagnose, former, restore, clean up", "1.0", "release 2.0 failed" + restored, notUp + confirm + wrong},
		{applied, asked, faults{confirm: interrupts}, "observe, confirm, approval, diagnose, former, restore, clean up", "1.0", "release 2.0 failed" + restored, notUp + interrupted},
		{applied, asked, faults{confirm: fails, approval: fails}, "observe, confirm, approval", "2.0", "release 2.0 is deployed as revision 2, but it is not up, and it was left as it is", notUp + confirm + wrong + "; " + approval + wrong},
		{applied, recovery, faults{confirm: fails}, "observe, confirm, approval, diagnose, former, restore, clean up", "1.0", "the deployment of release 2.0 died half-way" + restored, died + notUp + confirm + wrong},
		// restore
		{stopped, recovery, faults{observe: fails}, "observe", "", "the deployment of release 2.0 died half-way" + unknown, died + observe + wrong},
		{stopped, recovery, faults{observe: interrupts}, "observe, approval, former, restore, clean up", "1.0", "the deployment of release 2.0 died half-way" + restored, strings.TrimSuffix(died, "; ")},
		{stopped, recovery, faults{approval: fails}, "observe, approval", "", "the deployment of release 2.0 died half-way" + unknown, died + approval + wrong},
		{stopped, recovery, faults{former: fails}, "observe, approval, former", "", "the deployment of release 2.0 died half-way" + unknown, died + former + wrong},
		{stopped, recovery, faults{restore: fails}, "observe, approval, former, restore, diagnose", "", "the deployment of release 2.0 died half-way" + lost, died + "RESTORING release 1.0 FAILED as well: " + restore + wrong},
	} {
		t.Run(fmt.Sprintf("%s, %s: %v", c.state, c.request, c.faults), func(t *testing.T) {
			s := newScenario(c.state, c.request, c.faults).run(t)
			s.check(t)
			if want := c.calls + ", close"; s.path() != want {
				t.Errorf("called: %s\nnot     %s", s.path(), want)
			}
			if r := s.result; r.Message != c.message || r.Error != c.err || r.Serving != c.serves {
				t.Errorf("%q serves: %s\n%s\nnot %q: %s\n%s", r.Serving, r.Message, r.Error, c.serves, c.message, c.err)
			}
		})
	}
}

// TestWaysBack shows what becomes of a failed release that no former one replaces.
func TestWaysBack(t *testing.T) {
	for _, c := range []struct {
		former  deploy.Former
		faults  map[string]fault
		serves  string
		message string
	}{
		{deploy.Former{Way: deploy.RemoveAll}, nil, "", "; it was removed; nothing served before"},
		{deploy.Former{Way: deploy.RemoveAll}, map[string]fault{remove: fails}, "", ", and removing it failed as well: look at the cluster"},
		{deploy.Former{Text: " and was left as it is"}, nil, "", " and was left as it is"},
		{deploy.Former{Text: " early", Serves: &deploy.Serves{}}, nil, "", " early; nothing serves"},
		{deploy.Former{Serves: &deploy.Serves{Version: "1.0", Detail: " as revision 1", Revision: 1}}, nil, "1.0", "; release 1.0 serves as revision 1"},
	} {
		faults := map[string]fault{apply: fails}
		for step, f := range c.faults {
			faults[step] = f
		}
		s := newScenario(deploy.StateServing, deploy.RequestDeploy, faults)
		s.former = c.former
		s.run(t).check(t)
		if s.result.Message != "release 2.0 failed"+c.message || s.result.Serving != c.serves || s.result.Restored {
			t.Errorf("%+v: %+v", c.former, s.result)
		}
		if removed := strings.Contains(s.result.Error, "; removing it failed as well: remove failed: ${DB_PASSWORD} is wrong"); removed != (c.faults != nil) {
			t.Errorf("%+v: %+v", c.former, s.result)
		}
	}
}

// TestUpAfterAll believes a diagnosis that the release came up nevertheless.
func TestUpAfterAll(t *testing.T) {
	s := newScenario(deploy.StateServing, deploy.RequestDeploy, map[string]fault{apply: fails})
	s.diagnosis = &deploy.Diagnosis{Up: &deploy.Applied{Revision: 2, Detail: " as revision 2"}}
	s.run(t).check(t)
	if !s.result.Succeeded || s.result.HelmRevision != 2 || s.path() != "observe, preflight, approval, apply, diagnose, clean up, close" {
		t.Errorf("%s: %+v", s.path(), s.result)
	}
}

// TestApprovalThatComesTooLate: what was interrupted meanwhile is not begun.
func TestApprovalThatComesTooLate(t *testing.T) {
	s := newScenario(deploy.StateServing, deploy.RequestDeploy, nil)
	s.tooLate = true
	s.run(t).check(t)
	if s.path() != "observe, preflight, approval, close" || s.result.Changed || s.result.Error != errInterrupted.Error() {
		t.Errorf("%s: %+v", s.path(), s.result)
	}
}

// TestImpossibleJobs are refused by the factory, or before anything is observed.
func TestImpossibleJobs(t *testing.T) {
	for want, spoil := range map[string]func(s *scenario){
		"the job's timeouts must be positive":        func(s *scenario) { s.job.Timeout = 0 },
		"the job's timeouts must be positive ":       func(s *scenario) { s.job.RestoreTimeout = -1 },
		`the job asks for the unknown action "shut"`: func(s *scenario) { s.job.Action = protocol.Action("shut") },
		"no project": func(s *scenario) { s.errors = map[string]error{"open": errors.New("no project")} },
	} {
		s := newScenario(deploy.StateServing, deploy.RequestDeploy, nil)
		spoil(s)
		if s.run(t); s.result.Error != strings.TrimSpace(want) || s.result.Changed || s.path() != "close" && s.path() != "" {
			t.Errorf("%s: called %q, %+v", want, s.path(), s.result)
		}
	}
}

// TestUnnamedRollback says what it is about before and after Observe found out.
func TestUnnamedRollback(t *testing.T) {
	s := newScenario(deploy.StateServing, deploy.RequestRollback, map[string]fault{observe: fails})
	s.job.Release, s.job.Previous = protocol.Release{}, nil
	s.run(t).check(t)
	if s.result.Message != "the previous release was not deployed, and nothing was changed" || s.events[0].Phase != task.PhasePreflight || s.events[0].Text != "checking the previous release" {
		t.Errorf("%+v, %+v", s.result, s.events[0])
	}
}

// TestEveryFault lets every step, and every two steps, fail, hang, be interrupted and
// die, for each decision and each way back, and looks for what must never happen.
func TestEveryFault(t *testing.T) {
	formers := []deploy.Former{
		{Way: deploy.BringBack, Version: "1.0", Revision: 1},
		{Way: deploy.RemoveAll},
		{Text: " and was left as it is"},
	}
	faultsOf := func(step string) []fault {
		if step == apply {
			return []fault{fails, refuses, hangs, interrupts, dies}
		}
		return []fault{fails, hangs, interrupts, dies}
	}
	try := func(t *testing.T, state deploy.State, request deploy.Request, faults map[string]fault) {
		for _, back := range formers {
			s := newScenario(state, request, faults)
			s.former = back
			s.runInBubble()
			for _, p := range s.violations() {
				t.Errorf("%v, way back %d: %s\n\tcalled: %s", faults, back.Way, p, s.path())
			}
			for i, step := range s.calls {
				if faults[step] == dies && i != len(s.calls)-2 {
					t.Errorf("%v: called after its death: %s", faults, s.path())
				}
			}
		}
	}
	for _, state := range states {
		for _, request := range requests {
			t.Run(fmt.Sprintf("%s, %s", state, request), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					for i, one := range steps {
						for _, f := range faultsOf(one) {
							try(t, state, request, map[string]fault{one: f})
							for _, other := range steps[i+1:] {
								for _, g := range faultsOf(other) {
									try(t, state, request, map[string]fault{one: f, other: g})
								}
							}
						}
					}
				})
			})
		}
	}
}

// TestUnsettledFailures has an earlier failure that was never undone: what is refused,
// or changed nothing, does not say that the former release serves.
func TestUnsettledFailures(t *testing.T) {
	const unknown = "; what serves is not known, for revision 3 failed and was not undone"
	refused := newScenario(deploy.StateServing, deploy.RequestDeploy, map[string]fault{preflight: fails})
	died := newScenario(deploy.StateServing, deploy.RequestRecover, nil)
	for _, s := range []*scenario{refused, died} {
		s.observed.Unsettled = "revision 3 failed and was not undone"
		s.run(t)
		if s.result.Serving != "" || !strings.HasSuffix(s.result.Message, unknown) {
			t.Errorf("%+v", s.result)
		}
	}
	if !refused.result.ServingUnknown || refused.result.Changed {
		t.Errorf("%+v", refused.result)
	}
}
