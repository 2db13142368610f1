package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// idleLimit is what all resident processes of an idle agent may take together.
const idleLimit = 20 << 20

// The supervisor and its three components, as they are shipped, fit into 20 MB
// while there is nothing to do.
func TestIdleAgentStaysSmall(t *testing.T) {
	w := newWorld(t, "WRKTALK_AGENT_HTTP_LISTEN=127.0.0.1:0", "WRKTALK_AGENT_POLL_INTERVAL=30", "WRKTALK_AGENT_HEARTBEAT_INTERVAL=60")
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/",
		"github.com/wrktalk/wrktalk-agent/cmd/wrktalk-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	if err := os.Symlink(filepath.Join(programs(t), "wrktalk-deploy"), filepath.Join(dir, "wrktalk-deploy")); err != nil {
		t.Fatal(err)
	}
	w.runProgram(filepath.Join(dir, "wrktalk-agent"))
	w.eventually("the agent is ready", func() bool {
		_, err := httpGet("http://" + w.address() + "/readyz")
		return err == nil && w.sql(`select last_agent_poll is not null from deployment_config`) == "t"
	})
	sum, parts := 0, ""
	for _, role := range []string{"supervisor", "fetcher", "runner", "notifier"} {
		pss := proportional(t, w.pid(role))
		sum += pss
		parts += fmt.Sprintf(" %s %.1f", role, float64(pss)/(1<<20))
	}
	t.Logf("PSS in MiB: %.1f;%s", float64(sum)/(1<<20), parts)
	if sum > idleLimit {
		t.Errorf("the idle agent takes %d bytes, more than %d", sum, idleLimit)
	}
}

// proportional returns the proportional set size of a process in bytes.
func proportional(t *testing.T, pid int) int {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if kb, ok := strings.CutPrefix(s.Text(), "Pss:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(kb, "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("process %d has no proportional set size", pid)
	return 0
}
