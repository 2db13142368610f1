package controlpipe

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
)

// The test binary is its own component: with the argument "component" it
// prints what it learns, one line each.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "component" {
		os.Exit(component())
	}
	// Otherwise a component built with -race sleeps for a second as it exits.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

func component() int {
	l, err := FromEnv()
	if err != nil {
		os.Stdout.WriteString("error: " + err.Error() + "\n")
		return 2
	}
	os.Stdout.WriteString("snapshot: " + string(l.Snapshot()) + "\n")
	os.Stdout.WriteString("variable: " + os.Getenv(EnvVar) + "\n")
	l.Ready("waiting\nfor it")
	l.Ready("waiting\nfor it") // costs nothing
	telemetry.Recorder(l.Record).PhaseEnded(task.PhaseStaging, 1500*time.Millisecond)
	l.Alive(time.Hour)
	l.Alive(time.Hour) // promised already
	l.Alive(2 * time.Hour)
	l.Ready("")
	if !l.Supervised() {
		return 0
	}
	<-l.ParentGone()
	if len(os.Args) > 2 { // hangs
		select {}
	}
	os.Stdout.WriteString("gone\n")
	if err := l.Close(); err != nil {
		return 1
	}
	return 0
}

func TestFraming(t *testing.T) {
	for _, want := range []string{"", "x = 1\n", strings.Repeat("y", MaxSnapshot)} {
		var b bytes.Buffer
		if err := Send(&b, 3*time.Second, []byte(want)); err != nil {
			t.Fatal(err)
		}
		limit, got, err := receive(&b)
		if err != nil || string(got) != want || limit != 3*time.Second || b.Len() != 0 {
			t.Errorf("receive returns %d bytes, limit %s, error %v; want %d bytes and 3s", len(got), limit, err, len(want))
		}
	}
	if err := Send(io.Discard, 0, make([]byte, MaxSnapshot+1)); err == nil {
		t.Error("Send takes a snapshot above the limit")
	}
}

func TestReceiveRefuses(t *testing.T) {
	var good bytes.Buffer
	if err := Send(&good, 0, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(good.Bytes())
	other[7]++ // version
	huge := bytes.Clone(good.Bytes())
	huge[16] = 0xff // length
	for name, in := range map[string][]byte{
		"nothing": nil, "half a header": good.Bytes()[:9], "half a snapshot": good.Bytes()[:good.Len()-1],
		"another version": other, "too long": huge,
	} {
		if _, _, err := receive(bytes.NewReader(in)); err == nil {
			t.Errorf("%s: receive accepts it", name)
		}
	}
	if _, _, err := receive(bytes.NewReader(good.Bytes()[:good.Len()-1])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("receive of half a snapshot returns %v, want unexpected EOF", err)
	}
}

func TestParseReport(t *testing.T) {
	r, err := ParseReport([]byte(`{"ready":false,"reason":"` + strings.Repeat("z", 2*maxReason) + `"}`))
	if err != nil || r.Sample != nil || r.Alive != 0 || r.Status == nil || r.Status.Ready || len(r.Status.Reason) > maxReason {
		t.Errorf("ParseReport returns %+v, %v", r, err)
	}
	if r, err := ParseReport([]byte(`{"alive":1500}`)); err != nil || r != (Report{Alive: 1500}) {
		t.Errorf("ParseReport returns %+v, %v", r, err)
	}
	if _, err := ParseReport([]byte("ready")); err == nil {
		t.Error("ParseReport accepts what is not JSON")
	}
}

// A report needs no time while the supervisor's pipe has room, and gives up when
// there is none.
func TestReportNeedsRoomNotTime(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	l := &Conn{pipe: r, status: w} // only not nil: supervised
	told := 0
	for ; err == nil && told < 100_000; told++ {
		err = l.write(Status{Reason: strings.Repeat("z", 100)}, -time.Second)
	}
	told-- // the last one found no room
	if !errors.Is(err, os.ErrDeadlineExceeded) || told < 100 {
		t.Fatalf("%d reports, then %v", told, err)
	}
	lines := bufio.NewScanner(r)
	for range told {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		if r, err := ParseReport(lines.Bytes()); err != nil || r.Status == nil || len(r.Status.Reason) != 100 {
			t.Fatalf("read %q, %v", lines.Bytes(), err)
		}
	}
	// With room again, what was not delivered is.
	l.last = "again"
	l.Ready("again")
	l.Record(telemetry.Sample{Metric: telemetry.PhaseEnded})
	w.Close()
	expect(t, lines, `{"ready":false,"reason":"again"}`)
	if !lines.Scan() {
		t.Error("no sample came")
	}
	if lines.Scan() {
		t.Errorf("more came: %s", lines.Bytes())
	}
}

// A line longer than a pipe takes whole waits for its rest only.
func TestLongReportIsReadWhole(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	l := &Conn{pipe: r, status: w}
	long := Status{Reason: strings.Repeat("y", 1<<20)}
	written := make(chan error, 1)
	go func() { written <- l.write(long, time.Hour) }()
	lines := bufio.NewReader(r)
	text, err := lines.ReadString('\n')
	if err != nil || !strings.Contains(text, long.Reason) {
		t.Errorf("read %d bytes, %v", len(text), err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// supervised starts a component as the supervisor does.
func supervised(t *testing.T, args ...string) (cmd *exec.Cmd, line *os.File, status, stdout *bufio.Scanner) {
	t.Helper()
	var files []*os.File
	pipe := func() (*os.File, *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, r, w)
		return r, w
	}
	lineR, lineW := pipe()
	statusR, statusW := pipe()
	outR, outW := pipe()
	cmd = exec.Command("/proc/self/exe", append([]string{"component"}, args...)...)
	cmd.Env = append(os.Environ(), EnvVar+"=1")
	cmd.ExtraFiles = []*os.File{lineR, statusW}
	cmd.Stdout = outW
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{lineR, statusW, outW} {
		f.Close()
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for _, f := range files {
			f.Close()
		}
	})
	return cmd, lineW, bufio.NewScanner(statusR), bufio.NewScanner(outR)
}

// expect reads the next line; a test that waits for ever is ended by go test.
func expect(t *testing.T, s *bufio.Scanner, want string) {
	t.Helper()
	if !s.Scan() || s.Text() != want {
		t.Errorf("read %q (%v), want %q", s.Text(), s.Err(), want)
	}
}

func TestComponentSeesTheSupervisorComeAndGo(t *testing.T) {
	cmd, line, status, stdout := supervised(t)
	if err := Send(line, time.Minute, []byte("secret = 1")); err != nil {
		t.Fatal(err)
	}
	expect(t, stdout, "snapshot: secret = 1")
	expect(t, stdout, "variable: ")
	expect(t, status, `{"ready":false,"reason":"waiting\nfor it"}`)
	if !status.Scan() {
		t.Fatal(status.Err())
	}
	r, err := ParseReport(status.Bytes())
	if s := r.Sample; err != nil || s == nil || s.Metric != telemetry.PhaseEnded || s.Value != 1.5 || len(s.Labels) != 1 || s.Labels[0] != "staging" {
		t.Errorf("line %s is the sample %+v, %v", status.Bytes(), s, err)
	}
	expect(t, status, `{"alive":3600000000000}`)
	expect(t, status, `{"alive":7200000000000}`)
	expect(t, status, `{"ready":true}`)
	line.Close()
	expect(t, stdout, "gone")
	if err := cmd.Wait(); err != nil {
		t.Errorf("the component ends with %v", err)
	}
}

func TestAHangingComponentEndsAfterItsLimit(t *testing.T) {
	cmd, line, _, stdout := supervised(t, "hang")
	if err := Send(line, time.Millisecond, nil); err != nil {
		t.Fatal(err)
	}
	expect(t, stdout, "snapshot: ")
	expect(t, stdout, "variable: ")
	line.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("a component that hangs ends with success")
	}
}

func TestASupervisorThatDiesEarly(t *testing.T) {
	cmd, line, _, stdout := supervised(t)
	line.Close()
	expect(t, stdout, "error: receive configuration snapshot: EOF")
	if err := cmd.Wait(); err == nil {
		t.Error("a component without configuration ends with success")
	}
}

func TestAVariableWithoutPipes(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "component")
	cmd.Env = append(os.Environ(), EnvVar+"=1")
	out, err := cmd.Output()
	if err == nil || !strings.Contains(string(out), "unset "+EnvVar) {
		t.Errorf("the component says %q, %v; want what to do", out, err)
	}
}

func TestStandaloneTellsTheServiceManager(t *testing.T) {
	dir, err := os.MkdirTemp("", "notify") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cmd := exec.Command("/proc/self/exe", "component")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	if out, err := cmd.Output(); err != nil {
		t.Fatalf("the component says %q, %v", out, err)
	}
	for _, want := range []string{"STATUS=waiting for it", "READY=1\nSTATUS=ready"} {
		b := make([]byte, 1024)
		n, err := conn.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Errorf("the service manager heard %q, %v; want %q", b[:n], err, want)
		}
	}
}

func TestNotifyAbstractSocket(t *testing.T) {
	name := "@wrktalk-test-" + filepath.Base(t.TempDir()) + "-" + time.Now().Format("150405.000000000")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := Notify(name, "READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("heard %q, %v", b[:n], err)
	}
	if err := Notify("", "READY=1"); err != nil {
		t.Errorf("Notify without a service manager returns %v", err)
	}
	if err := Notify("/nonexistent/socket", "READY=1"); err == nil {
		t.Error("Notify to nobody returns no error")
	}
}

func TestWatchdogInterval(t *testing.T) {
	for _, tc := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"2000000", "", 2 * time.Second},
		{"2000000", "1", 0}, // somebody else's
		{"-1", "", 0},
		{"soon", "", 0},
	} {
		t.Setenv("WATCHDOG_USEC", tc.usec)
		t.Setenv("WATCHDOG_PID", tc.pid)
		if got := WatchdogInterval(); got != tc.want {
			t.Errorf("WATCHDOG_USEC=%q WATCHDOG_PID=%q: %s, want %s", tc.usec, tc.pid, got, tc.want)
		}
	}
}
