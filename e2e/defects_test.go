package e2e

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// A rollback whose release does not come up is a failed task, is announced as
// such, and the release that served before serves on.
func TestDefect03FailedRollbackIsRecordedAndAnnounced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sick := w.release("0.9.0", compose(testenv.AppImage(t, "0.9.0"), "environment: {APP_MODE: crash}").tarball(t), "")
	w.sql(`update release_artifact set is_previous = true, applied_at = now() - interval '1 day' where id = '%s'`, sick)
	w.run()
	if r := w.deploy(w.release("1.0.0", compose(testenv.AppImage(t, "1.0.0")).tarball(t), "")); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	w.sql(`update release_artifact set is_previous = true where id = '%s'`, sick)
	r := w.await(w.ask("rollback", ""))
	if r.Status != "failed" || r.Result["status"] != "failed" || r.Result["serving_version"] != "1.0.0" || r.Error == "" {
		t.Errorf("rollback: %s", r.Raw)
	}
	subjects := subjects(w.mails(4))
	if n := len(slices.DeleteFunc(subjects, func(s string) bool { return !strings.Contains(s, "ROLLBACK_FAILED") })); n != 2 {
		t.Errorf("%d mails say ROLLBACK_FAILED, want 2", n)
	}
	if got := w.get("/"); got != "1.0.0" {
		t.Errorf("%q serves", got)
	}
	if got := w.sql(`select release_version from release_artifact where is_current`); got != "1.0.0" {
		t.Errorf("%q is flagged current", got)
	}
	w.awaitClean()
}

// beside returns a second agent's machine on the same target and database.
func (w *world) beside() *world {
	w.t.Helper()
	other := &world{t: w.t, db: w.db, smtp: w.smtp, dir: w.t.TempDir(), project: w.project}
	for _, v := range w.env {
		other.env = append(other.env, strings.ReplaceAll(v, w.dir, other.dir))
	}
	return other
}

// Two agents on one target never work at the same time: the tasks' times in the
// database do not overlap, and each task is done once.
func TestDefect09TwoAgentsNeverOverlap(t *testing.T) {
	t.Parallel()
	first := newWorld(t)
	second := first.beside()
	releases := first.two()
	first.run()
	second.run()
	var ids []string
	for i := range 6 {
		ids = append(ids, first.ask("deploy", releases[i%2]))
	}
	for _, id := range ids {
		if r := first.await(id); r.Status != "completed" {
			t.Fatalf("%s", r.Raw)
		}
	}
	if got := first.sql(`select a.id, a.picked_up_at, a.completed_at, b.id, b.picked_up_at, b.completed_at
		from agent_task a join agent_task b on a.id < b.id
		and a.picked_up_at < b.completed_at and b.picked_up_at < a.completed_at`); got != "" {
		t.Errorf("tasks overlap:\n%s", got)
	}
	t.Logf("the agents claimed %d and %d tasks", strings.Count(first.logged(), "claimed deploy task"), strings.Count(second.logged(), "claimed deploy task"))
	for _, id := range ids {
		claims := strings.Count(first.logged(), "claimed deploy task "+id) + strings.Count(second.logged(), "claimed deploy task "+id)
		if claims != 1 {
			t.Errorf("task %s was claimed %d times", id, claims)
		}
	}
	if got := len(first.containers()); got != 1 {
		t.Errorf("%d containers exist, want 1", got)
	}
	first.mails(12)
	first.awaitClean()
	second.awaitClean()
}

// A mail server that accepts connections and then says nothing holds up neither
// the next task nor the agent's end, and loses no mail.
func TestDefect15SilentMailServerHoldsNothingUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "WRKTALK_AGENT_NOTIFY_TIMEOUT=1h")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	accepted := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			defer conn.Close() // when the test ends
			accepted <- struct{}{}
		}
	}()
	w.sql(`update deployment_config set smtp_port = %d`, silent.Addr().(*net.TCPAddr).Port)
	releases := w.two()
	w.run()
	if r := w.deploy(releases[0]); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	select {
	case <-accepted:
	case <-time.After(patience):
		t.Fatal("the notifier does not call the mail server")
	}
	if r := w.deploy(releases[1]); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	if n := len(w.smtp.Mails()); n != 0 {
		t.Errorf("%d mails have arrived: the test shows nothing", n)
	}
	w.stop()
	w.sql(`update deployment_config set smtp_port = %d`, w.smtp.Port)
	w.run()
	w.mails(4)
	w.awaitClean()
}

// SIGTERM ends an idle agent at once: it does not even look for tasks once more.
func TestDefect16IdleAgentEndsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "WRKTALK_AGENT_POLL_INTERVAL=1h", "WRKTALK_AGENT_LEASE=3h", "WRKTALK_AGENT_HEARTBEAT_INTERVAL=1h",
		"WRKTALK_AGENT_HTTP_LISTEN=127.0.0.1:0")
	w.run()
	w.eventually("the agent is ready", func() bool {
		page, err := httpGet("http://" + w.address() + "/readyz")
		return err == nil && !strings.Contains(page, "not ready") &&
			w.sql(`update deployment_config set last_agent_poll = null where last_agent_poll is not null returning 1`) == "1"
	})
	began := time.Now()
	w.agent.Process.Signal(syscall.SIGTERM)
	<-w.ended
	t.Logf("the idle agent ended after %s", time.Since(began))
	state := w.agent.ProcessState
	w.agent = nil
	if !state.Success() {
		t.Errorf("the agent ended with %s", state)
	}
	if got := w.sql(`select last_agent_poll is null from deployment_config`); got != "t" {
		t.Error("the agent looked for tasks before it ended")
	}
	if strings.Contains(w.logged(), "killed") || strings.Contains(w.logged(), "badly") {
		t.Error("a component did not end by itself")
	}
}

// largeLimit is what the fetcher may take at its peak, whatever the artifact.
const largeLimit = 32 << 20

// A large artifact is read from the database once, and its size does not show
// in the fetcher's memory.
func TestDefect26LargeArtifactIsReadOnceInLittleMemory(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("stages 200 MB")
	}
	w := newWorld(t, "WRKTALK_AGENT_DB_SSL_MODE=disable")
	const size = 200 << 20
	file := w.dir + "/large.tar.gz"
	writeLarge(t, file, size)
	if _, stderr, code := w.command("push", file, "--version", "1.0.0"); code != 0 {
		t.Fatal(stderr)
	}
	id := w.ask("deploy", w.sql(`select id from release_artifact`))
	relay := newCountingRelay(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(protected.server.Port)))
	w.env = append(w.env, "WRKTALK_AGENT_DB_PORT="+strconv.Itoa(relay.port))
	w.runComponent("fetcher")
	w.awaitState(id, "ready")
	w.eventually("it is published", func() bool { return len(ready(t, w.staging())) == 1 })
	peak := status(t, w.agent.Process.Pid, "VmHWM")
	t.Logf("the fetcher's peak is %.1f MiB; %.1f MB came from the database", float64(peak)/(1<<20), float64(relay.bytes.Load())/1e6)
	if peak > largeLimit {
		t.Errorf("the fetcher took %d bytes, more than %d", peak, largeLimit)
	}
	if n := relay.bytes.Load(); n < size || n > size*11/10 {
		t.Errorf("%d bytes came from the database for an artifact of %d", n, size)
	}
}

func ready(t *testing.T, staging string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(staging + "/ready")
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// status returns a field of /proc/PID/status that is in kB, in bytes.
func status(t *testing.T, pid int, field string) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kb, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatalf("no %s in the status of process %d", field, pid)
	return 0
}
