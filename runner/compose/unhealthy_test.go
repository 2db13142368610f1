package compose

import (
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// TestUnhealthyBefore: a container that was unhealthy before, and that a release
// leaves alone, is given until the timeout to get well.
func TestUnhealthyBefore(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	p := b.probe()
	worker := p.service(b, "worker")
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", worker)}, "")
	two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", worker)}, "")
	bad := b.release("3.0", map[string]string{"compose.yaml": b.web("3.0", "    command: [crash]\n"+worker)}, "")
	b.up(one, nil)
	id := b.container("worker")

	p.fail(b, "worker")
	b.onEvent("waiting until 2 services are up", func() { p.mend(b) })
	b.up(two, kept(one))

	p.fail(b, "worker")
	restoring := false
	b.watchers = append(b.watchers, func(e task.Event) bool {
		restoring = restoring || e.Phase == task.PhaseRestoring
		if restoring && e.Phase == task.PhaseWaiting {
			p.mend(b)
			return true
		}
		return false
	})
	res := b.run(b.job(bad, kept(two)))
	if !res.Restored || b.ask("web", "/") != "2.0" {
		t.Errorf("not restored: %+v", res)
	}
	if b.container("worker") != id {
		t.Error("the worker was replaced")
	}
}

// TestUnhealthyDependency: the library would not start what waits for it.
func TestUnhealthyDependency(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	p := b.probe()
	more := "    depends_on: {db: {condition: service_healthy}}\n" + p.service(b, "db")
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", more)}, "")
	two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", more)}, "")
	b.up(one, nil)
	id := b.container("db")
	p.fail(b, "db")
	b.onEvent("restarting container", func() { p.mend(b) })
	b.up(two, kept(one))
	if b.container("db") != id {
		t.Error("the dependency was replaced")
	}
}

// TestUnhealthyAfterRestart: one that stays unhealthy when it was restarted has
// failed.
func TestUnhealthyAfterRestart(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	p := b.probe()
	more := "    depends_on: {db: {condition: service_healthy}}\n" + p.service(b, "db")
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", more)}, "")
	two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", more)}, "")
	b.up(one, nil)
	p.fail(b, "db")
	failsWith(t, b.run(b.job(two, kept(one))), "release 2.0 did not come up", "db", "unhealthy", "RESTORING release 1.0 FAILED")
}
