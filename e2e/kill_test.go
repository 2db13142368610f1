package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// two stores two releases that differ in one variable, so that deploying them
// in turns replaces the container each time.
func (w *world) two() [2]string {
	w.t.Helper()
	image := testenv.AppImageWith(w.t, "1.0.0", 0)
	var ids [2]string
	for i := range ids {
		b := compose(image, "environment: {GREETING: '${GREETING}'}", "stop_grace_period: 0s", "volumes: ['./site:/site:ro']")
		b["site/index.txt"] = "hello"
		ids[i] = w.release(fmt.Sprintf("1.%d.0", i), b.tarball(w.t), fmt.Sprintf("GREETING=release-%d\n", i))
	}
	return ids
}

// settled checks what must hold after any crash: the task completed, its
// release serves alone, every administrator has the mail, nothing is left.
func (w *world) settled(task, version, greeting string) {
	w.t.Helper()
	r := w.await(task)
	if r.Status != "completed" || r.Result["release_version"] != version {
		w.t.Fatalf("task is %s", r.Raw)
	}
	if got := w.get("/env?name=GREETING"); got != greeting {
		w.t.Errorf("%q serves, want %q", got, greeting)
	}
	if got := len(w.containers()); got != 1 {
		w.t.Errorf("%d containers exist, want 1", got)
	}
	w.awaitClean()
	to := map[string]int{}
	ids := map[string]bool{}
	for _, m := range w.smtp.Mails() {
		if !strings.Contains(string(m.Raw), task) {
			continue
		}
		// A crash between the server's acceptance and the record may repeat a
		// mail, with the same Message-ID (RFC 1047); it never loses one.
		id := messageID(m.Raw)
		if !ids[id] {
			to[m.To[0]]++
		}
		ids[id] = true
	}
	if to["ada@wrktalk.example"] != 1 || to["grace@wrktalk.example"] != 1 || len(to) != 2 {
		w.t.Errorf("different mails per administrator: %v, want one each", to)
	}
	current := w.sql(`select release_version from release_artifact where is_current`)
	if current != version {
		w.t.Errorf("%q is flagged current, want %q", current, version)
	}
}

func messageID(raw []byte) string {
	for line := range strings.Lines(string(raw)) {
		if id, ok := strings.CutPrefix(line, "Message-ID: "); ok {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

var (
	taskName = regexp.MustCompile(`\d{8}T\d{6}Z-[a-z]+-[0-9.]+-[0-9a-f]{8}(\.\d+)?`)
	tempName = regexp.MustCompile(`/\.[^/>]*\.tmp[^/>]*|\.tmp-[^/>]*`)
)

// plainStep turns a label of the trace into a pattern that matches that step of
// any task. What lies in payload or restore goes the same way file by file.
func plainStep(label string) string {
	label = taskName.ReplaceAllString(label, "*")
	label = tempName.ReplaceAllString(label, "/*")
	if i := strings.Index(label, "*/restore/"); i >= 0 {
		label = label[:i] + "*" + label[strings.LastIndex(label, "/"):]
	}
	if i := strings.Index(label, "payload/"); i >= 0 {
		label = label[:i] + "payload/*"
	}
	return label
}

// A SIGKILL at any step that touches the disk, in any component, loses no task,
// applies none twice, loses no mail and leaves nothing behind.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "WRKTALK_AGENT_POLL_INTERVAL=1")
	releases := w.two()
	// What the second deployment takes no more, only an agent without a state
	// directory does.
	trace := func(name, version string, n int) map[string]bool {
		path := filepath.Join(w.dir, name)
		w.run("WRKTALK_FAULT=trace=" + path)
		w.settled(w.ask("deploy", releases[n]), version, fmt.Sprintf("release-%d", n))
		w.stop()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		steps := map[string]bool{}
		for line := range strings.Lines(string(data)) {
			steps[plainStep(strings.TrimSpace(line))] = true
		}
		return steps
	}
	first := trace("first", "1.0.0", 0)
	steps := trace("second", "1.1.0", 1)
	once := map[string]bool{}
	for label := range first {
		once[label] = !steps[label]
		steps[label] = true
	}
	var labels []string
	for label := range steps {
		if !strings.HasPrefix(label, "unpack.write") {
			labels = append(labels, label)
		}
	}
	slices.Sort(labels)
	if len(labels) < 40 {
		t.Fatalf("the traces hold %d different steps only: %q", len(labels), labels)
	}
	if testing.Short() {
		labels = slices.DeleteFunc(labels, func(s string) bool { return len(s)%5 != 0 })
	}
	// Each machine takes its share of the steps, one after the other.
	const machines = 4
	for m := range machines {
		t.Run("machine "+strconv.Itoa(m), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.killedAt(labels, once, m, machines)
		})
	}
}

// killedAt deploys once for every stride-th label from the first on, and kills
// there whoever takes that step. Those of fresh are steps of an agent that has no
// state directory yet.
func (w *world) killedAt(labels []string, fresh map[string]bool, first, stride int) {
	w.t.Helper()
	releases := w.two()
	w.run()
	w.settled(w.ask("deploy", releases[0]), "1.0.0", "release-0")
	w.settled(w.ask("deploy", releases[1]), "1.1.0", "release-1")
	w.stop()
	next := 0
	for i := first; i < len(labels); i += stride {
		w.step(labels[i], func() {
			if fresh[labels[i]] {
				if err := os.RemoveAll(filepath.Join(w.dir, "state")); err != nil {
					w.t.Fatal(err)
				}
			}
			once := filepath.Join(w.dir, fmt.Sprintf("once-%d", i))
			w.run("WRKTALK_FAULT=kill:" + labels[i] + ":1;once=" + once)
			if fresh[labels[i]] {
				w.runAgainIfKilled(once)
			}
			w.settled(w.ask("deploy", releases[next]), fmt.Sprintf("1.%d.0", next), fmt.Sprintf("release-%d", next))
			if _, err := os.Stat(once); err != nil {
				w.t.Errorf("the step was never reached: %v", err)
			}
			w.stop()
		})
		next = 1 - next
	}
}

// runAgainIfKilled waits for the kill that leaves the file at once, and starts the
// agent again, as a service manager does, if that ended it.
func (w *world) runAgainIfKilled(once string) {
	w.t.Helper()
	ended := func() bool {
		select {
		case <-w.ended:
			return true
		default:
			return false
		}
	}
	w.eventually("it is killed", func() bool {
		_, err := os.Stat(once)
		return err == nil && (ended() || strings.Contains(w.logged(), "component died"))
	})
	if ended() {
		w.run()
	}
}

// step is a subtest on the same machine.
func (w *world) step(name string, run func()) {
	outer := w.t.(*testing.T)
	outer.Run(name, func(t *testing.T) {
		w.t = t
		defer func() { w.t = outer }()
		run()
	})
}

// awaitState waits until the log shows that a task is in the given state.
func (w *world) awaitState(task, state string) {
	w.t.Helper()
	short := task[:8]
	w.eventually("task "+task+" is "+state, func() bool {
		for line := range strings.Lines(w.logged()) {
			if strings.Contains(line, short) && strings.Contains(line, `"state":"`+state+`"`) {
				return true
			}
		}
		return false
	})
}

var startedLine = regexp.MustCompile(`"msg":"component started","component":"(\w+)".*"pid":(\d+)`)

// pid returns the newest process of a component, of the supervisor, or of
// wrktalk-deploy; 0 when there is none.
func (w *world) pid(role string) int {
	w.t.Helper()
	if role == "supervisor" {
		return w.agent.Process.Pid
	}
	component := role
	if role == "deploy" {
		component = "runner"
	}
	pid := 0
	for _, m := range startedLine.FindAllStringSubmatch(w.logged(), -1) {
		if m[1] == component {
			pid, _ = strconv.Atoi(m[2])
		}
	}
	if role != "deploy" {
		return pid
	}
	for _, child := range children(pid) {
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child)); strings.TrimSpace(string(name)) == "wrktalk-deploy" {
			return child
		}
	}
	return 0
}

// children returns the processes whose parent is pid.
func children(pid int) []int {
	var found []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range tasks {
		data, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(field); err == nil {
				found = append(found, child)
			}
		}
	}
	return found
}

// A SIGKILL of any process in any phase: the task still ends in a truthful
// state. Only the death of wrktalk-deploy itself may fail it, and then the
// release that served before serves again.
func TestKilledInEveryPhase(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"fetcher", "runner", "notifier", "supervisor", "deploy"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.killedInEveryPhase(role)
		})
	}
}

func (w *world) killedInEveryPhase(role string) {
	outer := w.t
	releases := w.two()
	w.run()
	w.settled(w.ask("deploy", releases[0]), "1.0.0", "release-0")
	serving := 0
	for _, state := range []string{"claimed", "ready", "verifying", "preflight", "applying", "waiting", "recording"} {
		w.step("while "+state, func() {
			next := 1 - serving
			task := w.ask("deploy", releases[next])
			w.awaitState(task, state)
			pid := w.pid(role)
			if pid == 0 {
				if role != "deploy" {
					w.t.Fatalf("no %s runs", role)
				}
			} else {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			if role == "supervisor" {
				<-w.ended
				t := w.t
				w.t = outer // it outlives this step
				w.run()
				w.t = t
			}
			r := w.await(task)
			switch {
			case r.Status == "completed":
				serving = next
				w.settled(task, fmt.Sprintf("1.%d.0", next), fmt.Sprintf("release-%d", next))
			case role != "deploy" || pid == 0:
				w.t.Fatalf("task is %s", r.Raw)
			default:
				if !strings.Contains(r.Error, "signal 9") {
					w.t.Errorf("error does not say what happened: %q", r.Error)
				}
				if got := w.get("/env?name=GREETING"); got != fmt.Sprintf("release-%d", serving) {
					w.t.Errorf("%q serves after the repair, want release-%d", got, serving)
				}
				w.awaitClean()
			}
		})
	}
}
