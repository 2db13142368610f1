package compose

import (
	"os"
	"slices"
	"testing"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// TestHistory: what served is kept on the host, and is enough to go back to it.
func TestHistory(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	const env = "DB_PASSWORD=top-secret-1\nAPP=x\n"
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, env)
	two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "")}, "")
	bad := b.release("3.0", map[string]string{"compose.yaml": b.web("3.0", "    command: [crash]\n")}, "")
	history := func(want ...string) []protocol.HistoryEntry {
		t.Helper()
		list, err := protocol.ReadHistory(b.workdir)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range list {
			got = append(got, s.Version)
		}
		if !slices.Equal(got, want) {
			t.Errorf("history %v, want %v", got, want)
		}
		return list
	}
	b.up(one, nil)
	// The same task, its end not reported: found in place, so the page stays down.
	if res := b.run(b.job(one, nil)); !res.Succeeded || res.Serving != "1.0" || b.approvals != 0 {
		t.Errorf("%+v, %d approvals", res, b.approvals)
	}
	first := history("1.0")[0]
	if !slices.Equal(first.EnvNames, []string{"APP", "DB_PASSWORD"}) || first.TaskID != "task-1.0" || first.Bundle() != one.Bundle() || first.At.IsZero() {
		t.Errorf("%+v", first)
	}
	if found := contains(t, b.workdir, "top-secret-1"); found != nil {
		t.Errorf("the env is in %v", found)
	}
	b.up(two, kept(one))
	history("1.0", "2.0")
	job := b.job(bad, kept(two))
	job.Compose.Keep = 5
	if res := b.run(job); !res.Restored {
		t.Errorf("%+v", res)
	}
	history("1.0", "2.0")

	// Back to what is kept, with an env that a person brought.
	back := b.job(kept(one), kept(two))
	back.TaskID = "back"
	back.Release.EnvFile = two.EnvFile
	res := b.run(back)
	failsWith(t, res, "lacks APP, DB_PASSWORD", "--env")
	if res.Changed || b.approvals != 0 {
		t.Errorf("touched: %+v", res)
	}
	history("1.0", "2.0")
	back.Release.EnvFile = one.EnvFile
	if err := os.RemoveAll(one.PayloadDir); err != nil {
		t.Fatal(err)
	}
	if res := b.run(back); !res.Succeeded || b.ask("web", "/") != "1.0" {
		t.Errorf("%+v", res)
	}
	history("1.0", "2.0", "1.0")
}
