package operator

import (
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Of each directory it is said who acts on it next.
func TestInspectSaysWhoActsNext(t *testing.T) {
	e := newEnv(t)
	e.newTask("1.0.0", nil)
	st := e.publish(e.claim())
	next := func() string {
		t.Helper()
		i, err := e.Inspect(st.Name)
		if err != nil || len(i.States) != 1 || len(i.States[0].Tasks) != 1 {
			t.Fatalf("inspected %+v, %v", i, err)
		}
		return i.States[0].Tasks[0].Next
	}
	if got := next(); !strings.HasPrefix(got, "nobody: the runner is not running; when it starts it takes it") {
		t.Errorf("in ready: %s", got)
	}
	if err := st.Start(); err != nil {
		t.Fatal(err)
	}
	if got := next(); !strings.HasSuffix(got, "confirms the claim and deploys it again") {
		t.Errorf("in running: %s", got)
	}
	if err := st.RequestCancel("wrong version"); err != nil {
		t.Fatal(err)
	}
	if got := next(); !strings.HasSuffix(got, "records it as cancelled") {
		t.Errorf("after a request to cancel it: %s", got)
	}
	if err := st.SaveOutcome(task.Outcome{Schema: task.OutcomeSchema}); err != nil {
		t.Fatal(err)
	}
	if got := next(); !strings.HasSuffix(got, "records the outcome in the database") {
		t.Errorf("with an outcome: %s", got)
	}
	i, err := e.Inspect("")
	if err != nil || len(i.States) != len(staging.States) || !i.Components[0].Running || i.Components[1].Running {
		t.Errorf("inspected %+v, %v", i, err)
	}
}
