package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

// A staging directory that is removed under an agent, whole or in part, costs no task
// and no restart. Where somebody else's directory lies in its place nothing is
// touched, and the health page says that the agent cannot work until it is gone. A
// second agent on it ends with a sentence.
func TestTheStagingDirectoryIsRemoved(t *testing.T) {
	t.Parallel()
	w := newMachine(t, "none", "WRKTALK_AGENT_HTTP_LISTEN=127.0.0.1:0")
	w.run()
	ended := 0
	end := func() {
		t.Helper()
		if r := w.await(w.ask("reboot", "")); r.Status != "failed" || !strings.Contains(r.Error, "reboot") {
			t.Errorf("row is %s", r.Raw)
		}
		ended++
		w.mails(2 * ended)
		w.awaitClean()
	}
	end()
	for _, part := range []string{"", "tmp", "ready", "running", "done", "trash"} {
		if err := os.RemoveAll(filepath.Join(w.staging(), part)); err != nil {
			t.Fatal(err)
		}
		end()
	}
	if strings.Contains(w.logged(), "component died") {
		t.Error("a component died of it")
	}
	w.expect(map[string]float64{
		`wrktalk_agent_tasks_total{kind="other",result="failed"}`: float64(ended),
		`wrktalk_agent_staging_bytes`:                             0,
	})
	w.eventually("the agent has locked the new directory", func() bool { return staging.AgentHolds(w.staging()) != nil })
	if _, complaint, code := w.command("run"); code != 1 ||
		!strings.Contains(complaint, fmt.Sprintf("another agent (process %d) is running on staging directory %s", w.agent.Process.Pid, w.staging())) {
		t.Errorf("a second agent ends with %d and says %q", code, complaint)
	}

	if err := os.Rename(w.staging(), w.staging()+".ours"); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(w.staging(), "ready", "letter.txt")
	if err := os.MkdirAll(filepath.Dir(theirs), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(theirs, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	healthz := func() (code int) {
		res, err := http.Get("http://" + w.address() + "/healthz")
		if err != nil {
			return 0
		}
		res.Body.Close()
		return res.StatusCode
	}
	w.eventually("the agent says that it cannot work", func() bool { return healthz() == http.StatusServiceUnavailable })
	if page, err := httpGet("http://" + w.address() + "/readyz"); err != nil || !strings.Contains(page, "in use by something else") {
		t.Errorf("/readyz says %q, %v", page, err)
	}
	if b, err := os.ReadFile(theirs); err != nil || string(b) != "theirs" {
		t.Errorf("what somebody else keeps there is now %q, %v", b, err)
	}
	if info, err := os.Stat(w.staging()); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the mode of somebody else's directory is now %v, %v", info, err)
	}
	w.stop()
}
