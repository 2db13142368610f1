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

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// idleLimit is what all resident processes of an idle agent may take together.
const idleLimit = 20_000_000

// The supervisor and its three components, as they are shipped, come back to
// less than 20 MB PSS once there is nothing to do, after a deployment as well.
// Without internal/residentset it would be 26 MB.
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
	image := testenv.AppImage(t, "1.0.0")
	if r := w.deploy(w.release("1.0.0", compose(image).tarball(t), "")); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	w.mails(2)
	w.awaitClean()
	w.scrape()
	pids := map[string]int{}
	for _, role := range []string{"supervisor", "fetcher", "runner", "notifier"} {
		pids[role] = w.pid(role)
	}
	measure := func() (sum int, parts string) {
		for role, pid := range pids {
			pss := proportional(t, pid)
			sum += pss
			parts += fmt.Sprintf(" %s %.1f", role, float64(pss)/(1<<20))
		}
		return sum, parts
	}
	busy, _ := measure()
	sum, parts := 0, ""
	defer func() {
		t.Logf("PSS in MiB: %.1f after work, then %.1f:%s", float64(busy)/(1<<20), float64(sum)/(1<<20), parts)
	}()
	w.eventually("the idle agent is small", func() bool {
		sum, parts = measure()
		return sum < idleLimit
	})
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
