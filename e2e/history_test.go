package e2e

import (
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// After its mails, a run can be looked at without the database, and nothing of its secrets
// is left; staging is empty.
func TestHistoryStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	proxy := w.severed()
	w.run()
	image := testenv.AppImage(t, "1.0.0")
	app := func(more ...string) bundle {
		return compose(image, append([]string{`environment: {TOKEN: "${TOKEN}"}`}, more...)...)
	}
	good := w.ask("deploy", w.release("1.0.0", app().tarball(t), "TOKEN=canary-77aa01\n"))
	if r := w.await(good); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	bad := w.ask("deploy", w.release("1.1.0", app("command: [crash, '3']").tarball(t), "TOKEN=canary-77aa01\n"))
	if r := w.await(bad); r.Status != "failed" {
		t.Fatalf("%s", r.Raw)
	}
	w.mails(4)
	w.awaitClean()
	releases := strings.Split(strings.TrimSpace(w.must("releases")), "\n")
	if len(releases) != 3 || !strings.HasPrefix(releases[1], "1.1.0 ") || !strings.HasPrefix(releases[2], "1.0.0 ") || !strings.HasSuffix(releases[2], "serves") {
		t.Errorf("releases says %q", releases)
	}
	if got := w.must("releases", "--last", "1", "--output", "json"); strings.Count(got, `"version": "1.1.0"`) != 1 || strings.Contains(got, "1.0.0") {
		t.Errorf("as JSON: %s", got)
	}
	proxy.Refuse(true)
	lines := strings.Split(strings.TrimSpace(w.must("history")), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], bad[:8]) || !strings.Contains(lines[0], "deploy of 1.1.0 failed") ||
		!strings.Contains(lines[1], good[:8]) || !strings.Contains(lines[1], "deploy of 1.0.0 completed") {
		t.Errorf("history says %q", lines)
	}
	if got := w.must("history", "--last", "1", "--output", "json"); strings.Count(got, `"task_id"`) != 1 {
		t.Errorf("as JSON: %s", got)
	}
	if out, stderr, code := w.command("status"); code != 1 || !strings.Contains(out, "deploy of 1.1.0 failed") || !strings.Contains(stderr, "database") {
		t.Errorf("status: exit code %d, %s, %s", code, out, stderr)
	}
	for _, name := range []string{bad[:8], ""} { // the newest run is this one
		args := []string{"logs"}
		if name != "" {
			args = append(args, name)
		}
		if got := w.must(args...); !strings.Contains(got, w.project) || !strings.Contains(got, "deploy of 1.1.0 failed") {
			t.Errorf("%q says %s", args, got)
		}
	}
	if got := w.must("inspect", good); !strings.Contains(got, "mail to ada@wrktalk.example sent") || !strings.Contains(got, "bringing up release 1.0.0") {
		t.Errorf("inspect says %s", got)
	}
	if _, stderr, code := w.command("inspect", "ffffffff"); code != 1 || !strings.Contains(stderr, "there is no task") {
		t.Errorf("of an unknown task: exit code %d, %s", code, stderr)
	}
	w.searchFor("canary-77aa01")
}
