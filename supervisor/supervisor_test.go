package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// quick are numbers that make deaths and crash loops short. A life that only
// starts and ends must not seem a steady one, however slow the machine is.
var quick = RestartPolicy{Min: 2 * time.Millisecond, Max: 20 * time.Millisecond, ResetAfter: 10 * time.Second}

func three() []Component {
	return []Component{comp("fetcher", "serve"), comp("runner", "serve"), comp("notifier", "serve")}
}

// said returns, in order of appearance, "component message" of the records
// with one of the messages.
func said(o *output, messages ...string) []string {
	var list []string
	for _, l := range o.all() {
		if r := parse(l); slices.Contains(messages, r.text("msg")) {
			list = append(list, r.text("component")+" "+r.text("msg"))
		}
	}
	return list
}

func TestStartsInOrderAndStops(t *testing.T) {
	a := launch(t, Config{Components: three()})
	a.awaitReady(t)
	want := []string{"fetcher component started", "runner component started", "notifier component started"}
	if got := said(a.out, "component started"); !slices.Equal(got, want) {
		t.Errorf("started %q, want %q", got, want)
	}
	for _, s := range a.Statuses() {
		if s.State != StateRunning || !s.Ready || s.PID == 0 {
			t.Errorf("status is %+v, want running, ready and with a pid", s)
		}
	}
	// Ctrl-C on a terminal reaches the supervisor's group: not them.
	for _, name := range []string{"fetcher", "runner", "notifier"} {
		if r := a.out.await(t, 1, "component", name, "msg", "serving"); r["pgid"] != r["pid"] {
			t.Errorf("%s has process group %v and pid %v, want its own group", name, r["pgid"], r["pid"])
		}
	}
	a.signals <- syscall.SIGINT
	if err := a.awaitEnd(t); err != nil {
		t.Errorf("Run returns %v, want nil", err)
	}
}

func TestStopsInOrder(t *testing.T) {
	// Asked all at once they would say bye in the opposite order.
	a := launch(t, Config{Components: []Component{
		comp("fetcher", "serve", "300ms"), comp("runner", "serve", "150ms"), comp("notifier", "serve"),
	}})
	a.awaitReady(t)
	a.signals <- syscall.SIGTERM
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"fetcher asked to stop", "fetcher bye", "fetcher component stopped",
		"runner asked to stop", "runner bye", "runner component stopped",
		"notifier asked to stop", "notifier bye", "notifier component stopped",
	}
	if got := said(a.out, "asked to stop", "bye", "component stopped"); !slices.Equal(got, want) {
		t.Errorf("stopped in the order %q, want %q", got, want)
	}
}

func TestEndOfSignalsStops(t *testing.T) {
	a := launch(t, Config{Components: three()[:1]})
	a.awaitReady(t)
	signals := a.signals
	a.signals = make(chan os.Signal, 4) // for the cleanup
	close(signals)
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
}

func TestRestartsAKilledComponent(t *testing.T) {
	a := launch(t, Config{Components: three(), Restart: quick})
	a.awaitReady(t)
	pid := a.out.await(t, 1, "component", "runner", "msg", "serving").pid()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	died := a.out.await(t, 1, "component", "runner", "msg", "component died")
	if died.text("exit") != "signal: killed" || died.text("deaths") != "1" || died.text("state") != "restarting" {
		t.Errorf("death is reported as %v", died)
	}
	if again := a.out.await(t, 2, "component", "runner", "msg", "serving").pid(); again == pid {
		t.Errorf("the new runner has the pid %d of the old one", again)
	}
	if n := a.out.count("msg", "component died"); n != 1 {
		t.Errorf("%d components died, want the runner alone", n)
	}
	if s := a.Statuses()[1]; s.Restarts != 1 {
		t.Errorf("status is %+v, want one restart", s)
	}
}

// What a dead component started in its group would work beside its successor.
func TestADeadComponentLeavesNothing(t *testing.T) {
	a := launch(t, Config{Components: []Component{{
		Name: "runner", Args: []string{"component", "runner", "stubborn"}, StopTimeout: time.Millisecond,
	}}, Restart: quick})
	pid := a.out.await(t, 1, "component", "runner", "msg", "serving").pid()
	holder := open(t, a.out.await(t, 1, "msg", "holding").pid())
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	holder.awaitEnd(t)
	a.out.await(t, 2, "component", "runner", "msg", "serving")
}

func TestRestartsOneThatExitsCleanly(t *testing.T) {
	a := launch(t, Config{Components: []Component{comp("fetcher", "exit", "0")}, Restart: quick})
	if r := a.out.await(t, 2, "msg", "component died"); r.text("exit") != "exit status 0" {
		t.Errorf("death is reported as %v", r)
	}
}

func TestReportsACrashLoopOnce(t *testing.T) {
	mended := filepath.Join(t.TempDir(), "mended")
	a := launch(t, Config{
		Components: []Component{comp("fetcher", "flaky", mended), comp("runner", "serve")},
		Restart:    quick, Listen: "127.0.0.1:0",
	})
	loop := a.out.await(t, 1, "msg", "component is in a crash loop")
	for key, want := range map[string]string{
		"level": "ERROR", "component": "fetcher", "deaths": "5", "exit": "exit status 1",
	} {
		if loop.text(key) != want {
			t.Errorf("crash loop reports %s=%q, want %q", key, loop.text(key), want)
		}
	}
	if _, ok := loop["restart_in"]; !ok {
		t.Errorf("crash loop does not say when it starts again: %v", loop)
	}
	if code, body := a.get(t, "/healthz", ""); code != 503 || !strings.Contains(body, "fetcher") || !strings.Contains(body, "crash loop") {
		t.Errorf("/healthz in a crash loop answers %d %q", code, body)
	}
	a.out.await(t, 12, "msg", "component died")
	if n := a.out.count("msg", "component is in a crash loop"); n != 1 {
		t.Errorf("crash loop was reported %d times in one crash loop, want once", n)
	}
	if err := os.WriteFile(mended, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.out.await(t, 1, "msg", "component is out of its crash loop", "component", "fetcher")
	if code, body := a.get(t, "/healthz", ""); code != 200 {
		t.Errorf("/healthz after the crash loop answers %d %q", code, body)
	}
}

// One that gives no sign of life when it promised to is killed and started anew.
func TestAHangingComponentIsStartedAnew(t *testing.T) {
	mended := filepath.Join(t.TempDir(), "mended")
	a := launch(t, Config{Components: []Component{comp("fetcher", "hangs", mended), comp("runner", "serve")}, Restart: quick})
	a.out.await(t, 2, "msg", "component hangs: it is killed and started anew", "component", "fetcher", "level", "ERROR")
	a.out.await(t, 2, "msg", "component died", "component", "fetcher", "exit", "signal: killed")
	if err := os.WriteFile(mended, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.out.await(t, 1, "msg", "serving", "component", "fetcher")
	a.awaitReady(t)
	if n := a.out.count("msg", "component died", "component", "runner"); n != 0 {
		t.Errorf("the other one died %d times", n)
	}
}

func TestExitCode2IsTriedSlowly(t *testing.T) {
	a := launch(t, Config{Components: []Component{comp("fetcher", "exit", "2")}})
	r := a.out.await(t, 1, "level", "ERROR", "component", "fetcher")
	if !strings.Contains(r.text("msg"), "refuses its configuration") {
		t.Errorf("exit code 2 is reported as %v", r)
	}
	if d := time.Duration(r["restart_in"].(float64)); d < 15*time.Second {
		t.Errorf("next start in %s, want the slowest pace", d)
	}
	a.signals <- syscall.SIGTERM // and waiting for it holds nobody up
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
}

func TestMissingProgramAtTheStart(t *testing.T) {
	_, err := New(Config{
		Program: "/nonexistent/agent", Components: three(),
		Log: slog.Default(), Output: os.Stderr,
	})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("New returns %v, want one that says the program is missing", err)
	}
}

func TestMissingProgramAtARestart(t *testing.T) {
	program := copyOfSelf(t)
	a := launch(t, Config{Program: program, Components: three()[:1], Restart: quick})
	pid := a.out.await(t, 1, "msg", "serving").pid()
	if err := os.Rename(program, program+".away"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r := a.out.await(t, 2, "msg", "component cannot be started")
	if !strings.Contains(r.text("exit"), program) {
		t.Errorf("does not name the missing program: %v", r)
	}
	if err := os.Rename(program+".away", program); err != nil {
		t.Fatal(err)
	}
	a.out.await(t, 2, "msg", "serving")
}

func TestSecondSignalGoesToAllAtOnce(t *testing.T) {
	// The fetcher never stops, so the runner's turn never comes: and still the
	// runner learns that it is to interrupt its deployment now.
	a := launch(t, Config{Components: []Component{
		{Name: "fetcher", Args: []string{"component", "fetcher", "stubborn"}, StopTimeout: -1},
		{Name: "runner", Args: []string{"component", "runner", "slow"}, StopTimeout: -1},
		{Name: "notifier", Args: []string{"component", "notifier", "serve"}, StopTimeout: -1},
	}})
	a.awaitReady(t)
	holder := open(t, a.out.await(t, 1, "msg", "holding").pid())
	a.signals <- syscall.SIGTERM
	a.out.await(t, 1, "msg", "stopping")
	if n := a.out.count("msg", "asked to stop"); n != 0 {
		t.Errorf("%d components were asked to stop before their turn", n)
	}
	a.signals <- syscall.SIGTERM
	a.out.await(t, 1, "component", "runner", "msg", "second request")
	a.out.await(t, 1, "component", "runner", "msg", "component stopped")
	a.out.await(t, 1, "component", "notifier", "msg", "component stopped")
	a.signals <- syscall.SIGINT
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
	if r := a.out.await(t, 1, "component", "fetcher", "state", "stopped"); r.text("exit") != "signal: killed" {
		t.Errorf("the third signal ended the fetcher with %q, want killed", r.text("exit"))
	}
	holder.awaitEnd(t)
}

func TestSecondSignalReachesOneThatWasAsked(t *testing.T) {
	a := launch(t, Config{Components: []Component{
		comp("fetcher", "serve"),
		{Name: "runner", Args: []string{"component", "runner", "slow"}, StopTimeout: -1},
	}})
	a.awaitReady(t)
	a.signals <- syscall.SIGTERM
	a.out.await(t, 1, "component", "runner", "msg", "asked to stop")
	a.signals <- syscall.SIGINT
	if r := a.out.await(t, 1, "component", "runner", "msg", "second request"); r.text("signal") != "interrupt" {
		t.Errorf("the runner got %q as its second signal, want SIGINT", r.text("signal"))
	}
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
}

// Two requests to stop are two requests, also to a component that takes both at once.
func TestSecondSignalReachesOneThatHasNotTakenTheFirst(t *testing.T) {
	a := launch(t, Config{Components: []Component{
		{Name: "runner", Args: []string{"component", "runner", "slow"}, StopTimeout: -1},
	}})
	a.awaitReady(t)
	pid := a.out.await(t, 1, "msg", "component started").pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, pid, "State:", func(state string) bool { return state == "T" })
	pending := func(sig syscall.Signal) {
		awaitStatus(t, pid, "ShdPnd:", func(field string) bool {
			mask, err := strconv.ParseUint(field, 16, 64)
			return err == nil && mask&(1<<(sig-1)) != 0
		})
	}
	a.signals <- syscall.SIGTERM
	pending(syscall.SIGTERM)
	a.signals <- syscall.SIGTERM
	pending(syscall.SIGINT)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	a.out.await(t, 1, "component", "runner", "msg", "second request")
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
}

// awaitStatus waits until a field of /proc/PID/task/*/status is as wanted in each thread.
func awaitStatus(t *testing.T, pid int, field string, wanted func(string) bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		all := len(threads) > 0
		for _, path := range threads {
			status, err := os.ReadFile(path)
			_, after, found := strings.Cut(string(status), field)
			all = all && err == nil && found && wanted(strings.Fields(after)[0])
		}
		if all {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not as wanted", field)
		}
	}
}

func TestKillsWhatDoesNotStopInTime(t *testing.T) {
	a := launch(t, Config{Components: []Component{
		{Name: "fetcher", Args: []string{"component", "fetcher", "stubborn"}, StopTimeout: 50 * time.Millisecond},
		comp("runner", "serve"),
	}})
	a.awaitReady(t)
	holder := open(t, a.out.await(t, 1, "msg", "holding").pid())
	a.signals <- syscall.SIGTERM
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
	holder.awaitEnd(t)
	if r := a.out.await(t, 1, "component", "fetcher", "level", "ERROR"); !strings.Contains(r.text("msg"), "did not stop in time") {
		t.Errorf("killing is reported as %v", r)
	}
	if r := a.out.await(t, 1, "component", "runner", "msg", "component stopped"); r.text("exit") != "exit status 0" {
		t.Errorf("the runner ended with %q, want a clean exit", r.text("exit"))
	}
}

func TestHangupWithoutReload(t *testing.T) {
	a := launch(t, Config{Components: three()[:1]})
	a.awaitReady(t)
	a.signals <- syscall.SIGHUP
	a.out.await(t, 1, "component", "supervisor", "signal", "hangup", "level", "INFO",
		"msg", "signal ignored: restart the agent to load a changed configuration")
	a.signals <- syscall.SIGTERM
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
	if n := a.out.count("component", "fetcher", "msg", "component stopped"); n != 1 {
		t.Errorf("the fetcher stopped %d times, want once", n)
	}
}

// A changed configuration is handed to each component as it is started anew, which is
// no death; one that waits in a crash loop is started with it at once.
func TestReload(t *testing.T) {
	refuses := errors.New("something is wrong with it")
	results := make(chan error, 3)
	now := Reloaded{
		Snapshot: []byte("changed"), Warnings: []string{"one thing needs a restart"},
		Components: []Component{comp("fetcher", "tells"), comp("runner", "serve")},
	}
	a := launch(t, Config{
		Components: []Component{comp("fetcher", "tells"), comp("runner", "exit", "2")}, Snapshot: []byte("first"),
		Reload: func() (Reloaded, error) {
			err := <-results // then the test has set now
			return now, err
		},
	})
	a.out.await(t, 1, "msg", "serving", "snapshot", "first")
	a.out.await(t, 1, "component", "runner", "level", "ERROR")

	results <- refuses
	a.signals <- syscall.SIGHUP
	a.out.await(t, 1, "level", "ERROR", "msg", "the changed configuration is not used", "error", refuses.Error())

	results <- nil
	a.signals <- syscall.SIGHUP
	a.out.await(t, 1, "level", "WARN", "msg", "one thing needs a restart")
	a.out.await(t, 1, "component", "fetcher", "msg", "asked to end for another configuration")
	a.out.await(t, 1, "msg", "serving", "snapshot", "changed")
	a.awaitReady(t) // the runner, too
	if n := a.out.count("component", "fetcher", "msg", "component died"); n != 0 {
		t.Errorf("the fetcher died %d times", n)
	}
	if s := a.Statuses(); s[0].Restarts != 0 || s[0].CrashLoop {
		t.Errorf("the fetcher is %+v", s[0])
	}

	now.Components = now.Components[:1]
	results <- nil
	a.signals <- syscall.SIGHUP
	a.out.await(t, 2, "level", "ERROR", "msg", "the changed configuration is not used")
}
