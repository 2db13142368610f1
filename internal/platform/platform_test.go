package platform_test

import (
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// What the database and other versions of the agent know a platform by must
// never change, and never mean two.
func TestRowsAreWhatOtherVersionsKnow(t *testing.T) {
	for _, want := range []struct {
		deployment task.DeploymentType
		chart      task.ChartType
		lock       int32
		column     string
	}{
		{"kubernetes", "helm", 1, "helm_release_name"},
		{"docker", "compose", 2, "compose_project_name"},
	} {
		p := platform.Of(want.deployment)
		if p.Chart != want.chart || p.LockKey != want.lock || p.NameColumn != want.column {
			t.Errorf("%s is %+v", want.deployment, p)
		}
	}
	type key struct{ of, value any }
	seen := map[key]bool{}
	for _, p := range platform.All {
		for _, k := range []key{{"type", p.Type}, {"chart", p.Chart}, {"name", p.Name}, {"lock", p.LockKey}, {"column", p.NameColumn}} {
			if seen[k] || k.value == "" || k.value == int32(0) {
				t.Errorf("%s: the %v %v is empty or another platform's", p.Type, k.of, k.value)
			}
			seen[k] = true
		}
		if len(p.Text.UsedBy()) == 0 || p.Text.Flag == "" {
			t.Errorf("%s has no text: %+v", p.Type, p.Text)
		}
		for _, other := range p.Others() {
			if other.Type == p.Type {
				t.Errorf("%s is another platform than itself", p.Type)
			}
		}
		if len(p.Others()) != len(platform.All)-1 {
			t.Errorf("%s has %d others", p.Type, len(p.Others()))
		}
	}
	if p := platform.Of("swarm"); p != (platform.Platform{}) {
		t.Errorf("an unknown type is %+v", p)
	}
}
