package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// SIGHUP has the next deployment follow the configuration as it is then, and a file that
// cannot be used changes nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := filepath.Join(w.dir, "config.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hangUp := func(text string, n int) {
		t.Helper()
		if err := syscall.Kill(w.agent.Process.Pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		w.eventually(text, func() bool { return strings.Count(w.logged(), text) == n })
	}
	write("")
	w.run("WRKTALK_AGENT_CONFIG=" + file)
	b := compose(testenv.AppImage(t, "1.0.0"), "privileged: true")
	privileged := w.release("1.0.0", b.tarball(t), "")
	w.eventually("they are ready", func() bool { return strings.Count(w.logged(), `"component started"`) == 3 })

	write("[log]\nlevel = 'debug'\n[policy]\npreset = 'restricted'\n")
	hangUp("component ended to be started with the changed configuration", 3)
	if !strings.Contains(w.logged(), "the agent itself uses the former log.level until it is restarted") {
		t.Errorf("the log is\n%s", w.logged())
	}
	write("[policy]\npreset = 'odd'\n")
	hangUp("the changed configuration is not used", 1)
	if r := w.deploy(privileged); r.Status != "failed" || !strings.Contains(string(r.Raw), "privileged") {
		t.Errorf("under the policy: %s", r.Raw)
	}
	write("")
	hangUp("component ended to be started with the changed configuration", 6)
	if r := w.deploy(w.release("1.0.0", compose(testenv.AppImage(t, "1.0.0")).tarball(t), "")); r.Status != "completed" {
		t.Errorf("without it: %s", r.Raw)
	}
	w.awaitClean()
}
