package deploy_test

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// states and requests are the rows and columns of the table, in order.
var (
	states = []deploy.State{
		deploy.StateAbsent, deploy.StateServing, deploy.StateInterrupted,
		deploy.StateApplied, deploy.StateLocked, deploy.StateFailed,
	}
	requests = []deploy.Request{deploy.RequestDeploy, deploy.RequestRollback, deploy.RequestRecover}
)

// TestDesignShowsTable keeps the copy for readers equal to what decides.
func TestDesignShowsTable(t *testing.T) {
	design, err := os.ReadFile("../../DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	if table := formatTable(); !strings.Contains(string(design), "\n\n"+table+"\n") {
		t.Errorf("DESIGN.md does not show the table of the deployment flow, which is\n%s", table)
	}
}

// TestTable goes through the table row by row, with steps that all succeed.
func TestTable(t *testing.T) {
	const (
		applies  = "observe, preflight, approval, apply, clean up, close"
		confirms = "observe, confirm, clean up, close" // what serves is not changed, so nobody is asked
		restores = "observe, approval, former, restore, clean up, close"
		nothing  = "observe, close"

		died = "the deployment process died while it brought up release 2.0"
	)
	up := protocol.Result{
		Succeeded: true, Changed: true, ArtifactID: "a2", Serving: "2.0", HelmRevision: 2,
		Message: "release 2.0 is up as revision 2",
	}
	restored := protocol.Result{
		Restored: true, Changed: true, Serving: "1.0", HelmRevision: 3, Error: died,
		Message: "the deployment of release 2.0 died half-way; release 1.0 was restored and serves as revision 3",
	}
	refused := protocol.Result{
		Serving: "1.0", Error: "revision 2 is pending-upgrade",
		Message: "release 2.0 was not deployed, and nothing was changed",
	}
	rows := []struct {
		state   deploy.State
		request deploy.Request
		calls   string
		want    protocol.Result
	}{
		{deploy.StateAbsent, deploy.RequestDeploy, applies, up},
		{deploy.StateAbsent, deploy.RequestRollback, applies, up},
		{deploy.StateAbsent, deploy.RequestRecover, nothing, protocol.Result{
			Changed: true, Error: died,
			Message: "the deployment of release 2.0 died half-way before anything was recorded; nothing serves",
		}},
		{deploy.StateServing, deploy.RequestDeploy, applies, up},
		{deploy.StateServing, deploy.RequestRollback, applies, up},
		{deploy.StateServing, deploy.RequestRecover, nothing, protocol.Result{
			Changed: true, Serving: "1.0", HelmRevision: 1, Error: died,
			Message: "the deployment of release 2.0 died half-way before anything was recorded; release 1.0 serves as revision 1",
		}},
		{deploy.StateInterrupted, deploy.RequestDeploy, applies, up},
		{deploy.StateInterrupted, deploy.RequestRollback, applies, up},
		{deploy.StateInterrupted, deploy.RequestRecover, restores, restored},
		{deploy.StateApplied, deploy.RequestDeploy, confirms, up},
		{deploy.StateApplied, deploy.RequestRollback, confirms, up},
		{deploy.StateApplied, deploy.RequestRecover, confirms, up},
		{deploy.StateLocked, deploy.RequestDeploy, nothing, refused},
		{deploy.StateLocked, deploy.RequestRollback, nothing, refused},
		{deploy.StateLocked, deploy.RequestRecover, nothing, protocol.Result{
			Changed: true, Serving: "1.0", HelmRevision: 1, Error: died + "; revision 2 is pending-upgrade",
			Message: "the deployment of release 2.0 died half-way before anything was recorded; release 1.0 serves as revision 1",
		}},
		{deploy.StateFailed, deploy.RequestDeploy, applies, up},
		{deploy.StateFailed, deploy.RequestRollback, applies, up},
		{deploy.StateFailed, deploy.RequestRecover, restores, restored},
	}
	if want := len(states) * len(requests); len(rows) != want || len(deploy.Table) != len(states) {
		t.Errorf("%d rows for %d decisions", len(rows), want)
	}
	for _, row := range rows {
		t.Run(string(row.state)+", "+string(row.request), func(t *testing.T) {
			s := newScenario(row.state, row.request, nil).run(t)
			s.check(t)
			if s.path() != row.calls {
				t.Errorf("called: %s\nnot     %s", s.path(), row.calls)
			}
			if !reflect.DeepEqual(s.result, row.want) {
				t.Errorf("%+v\nnot %+v", s.result, row.want)
			}
		})
	}
}

// TestReportSaysMore covers what a recovery that changes nothing says beyond the table.
func TestReportSaysMore(t *testing.T) {
	for name, c := range map[string]struct {
		observed deploy.Observation
		want     protocol.Result
	}{
		"restored before": {
			deploy.Observation{State: deploy.StateServing, Restored: true, Serves: deploy.Serves{Version: "1.0", Detail: " as revision 3", Revision: 3}},
			protocol.Result{Restored: true, Serving: "1.0", HelmRevision: 3, Message: "; release 1.0 was restored before that and serves as revision 3"},
		},
		"another one came": {
			deploy.Observation{State: deploy.StateServing, Leftover: "revision 2", Serves: deploy.Serves{Version: "2.1", Detail: " as revision 3", Revision: 3}},
			protocol.Result{Serving: "2.1", HelmRevision: 3, Message: "; revision 2 was left behind, and another one was brought up since; release 2.1 serves as revision 3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScenario(c.observed.State, deploy.RequestRecover, nil)
			s.observed = c.observed
			s.run(t).check(t)
			c.want.Changed = true
			c.want.Message = "the deployment of release 2.0 died half-way" + c.want.Message
			c.want.Error = "the deployment process died while it brought up release 2.0"
			if !reflect.DeepEqual(s.result, c.want) {
				t.Errorf("%+v\nnot %+v", s.result, c.want)
			}
		})
	}
}

// formatTable returns the table as a Markdown table, as DESIGN.md shows it.
func formatTable() string {
	var b strings.Builder
	b.WriteString("| observed |")
	for _, r := range requests {
		fmt.Fprintf(&b, " %s |", r)
	}
	b.WriteString("\n|---|")
	b.WriteString(strings.Repeat("---|", len(requests)))
	b.WriteString("\n")
	for _, s := range states {
		fmt.Fprintf(&b, "| %s |", s)
		for _, r := range requests {
			fmt.Fprintf(&b, " %s |", deploy.Table[s][r])
		}
		b.WriteString("\n")
	}
	return b.String()
}
