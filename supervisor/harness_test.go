package supervisor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what has to happen; no assertion
// depends on it.
const patience = 10 * time.Minute

// output collects log lines and lets a test wait for one.
type output struct {
	// Writing a line that contains hold waits until gate is closed.
	hold string
	gate chan struct{}

	mu      sync.Mutex
	lines   []string
	records []record // the lines, parsed once
	rest    []byte
	changed chan struct{}
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	if o.gate != nil && bytes.Contains(b, []byte(o.hold)) {
		<-o.gate
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest = append(o.rest, b...)
	for {
		line, rest, found := bytes.Cut(o.rest, []byte{'\n'})
		if !found {
			break
		}
		o.lines, o.records, o.rest = append(o.lines, string(line)), append(o.records, parse(string(line))), rest
	}
	close(o.changed)
	o.changed = make(chan struct{})
	return len(b), nil
}

func (o *output) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.lines...)
}

// record is one log line; "raw" holds the line itself.
type record map[string]any

func (r record) text(key string) string {
	if v, ok := r[key]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

func (r record) pid() int { n, _ := r["pid"].(float64); return int(n) }

func parse(line string) record {
	r := record{}
	if json.Unmarshal([]byte(line), &r) != nil {
		r = record{}
	}
	r["raw"] = line
	return r
}

// await returns the n-th record, from 1, whose keys have the given values.
func (o *output) await(t *testing.T, n int, pairs ...string) record {
	t.Helper()
	limit := time.After(patience)
	for seen, found := 0, 0; ; {
		o.mu.Lock()
		changed := o.changed
		for ; seen < len(o.records); seen++ {
			if r := o.records[seen]; r.matches(pairs) {
				if found++; found == n {
					o.mu.Unlock()
					return r
				}
			}
		}
		o.mu.Unlock()
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("no %d log lines with %q in:\n%s", n, pairs, strings.Join(o.all(), "\n"))
		}
	}
}

func (r record) matches(pairs []string) bool {
	for i := 0; i < len(pairs); i += 2 {
		if r.text(pairs[i]) != pairs[i+1] {
			return false
		}
	}
	return true
}

// count returns how many records have the given values.
func (o *output) count(pairs ...string) int {
	n := 0
	for _, l := range o.all() {
		if parse(l).matches(pairs) {
			n++
		}
	}
	return n
}

// manager is a service manager's notification socket.
type manager struct {
	path string
	conn *net.UnixConn
	said chan string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{path: filepath.Join(dir, "s"), said: make(chan string, 4096)}
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		b := make([]byte, 8<<10)
		for {
			n, err := m.conn.Read(b)
			if err != nil {
				return
			}
			for l := range strings.SplitSeq(string(b[:n]), "\n") {
				m.said <- l
			}
		}
	})
	t.Cleanup(func() {
		m.conn.Close()
		reading.Wait()
		os.RemoveAll(dir)
	})
	return m
}

// await takes what was said until f likes it.
func (m *manager) await(t *testing.T, f func(string) bool) string {
	t.Helper()
	var heard []string
	for limit := time.After(patience); ; {
		select {
		case l := <-m.said:
			if f(l) {
				return l
			}
			heard = append(heard, l)
		case <-limit:
			t.Fatalf("the service manager heard only %q", heard)
		}
	}
}

func is(want string) func(string) bool { return func(s string) bool { return s == want } }

// agent is a supervisor that runs within the test.
type agent struct {
	*Supervisor
	out     *output
	manager *manager
	signals chan os.Signal
	ended   chan struct{} // closed when Run has returned err
	err     error
}

// launch starts a supervisor, which is stopped when the test ends.
func launch(t *testing.T, cfg Config) *agent {
	t.Helper()
	a := prepare(t, cfg)
	a.run(t)
	return a
}

// prepare makes one that does not run yet.
func prepare(t *testing.T, cfg Config) *agent {
	t.Helper()
	out, ok := cfg.Output.(*output)
	if !ok {
		out = newOutput()
	}
	a := &agent{out: out, manager: newManager(t), signals: make(chan os.Signal, 4), ended: make(chan struct{})}
	cfg.NotifySocket = a.manager.path
	if cfg.Output == nil {
		cfg.Output = a.out
	}
	cfg.Log = slog.New(slog.NewJSONHandler(cfg.Output, nil))
	if cfg.Env == nil {
		cfg.Env = os.Environ()
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a.Supervisor = s
	return a
}

func (a *agent) run(t *testing.T) {
	t.Helper()
	signals := a.signals
	go func() {
		defer close(a.ended)
		a.err = a.Run(signals)
	}()
	t.Cleanup(func() {
		for range 3 {
			select {
			case a.signals <- syscall.SIGTERM:
			default:
			}
		}
		_ = a.awaitEnd(t)
	})
}

// awaitReady waits until all components have reported ready.
func (a *agent) awaitReady(t *testing.T) {
	t.Helper()
	a.manager.await(t, is("READY=1"))
}

// awaitEnd waits until Run returns.
func (a *agent) awaitEnd(t *testing.T) error {
	t.Helper()
	select {
	case <-a.ended:
		return a.err
	case <-time.After(patience):
		t.Fatalf("the supervisor does not stop:\n%s", strings.Join(a.out.all(), "\n"))
		return nil
	}
}

// get asks the supervisor's HTTP server.
func (a *agent) get(t *testing.T, path, accept string) (int, string) {
	t.Helper()
	address := a.out.await(t, 1, "msg", "health is served").text("address")
	req, err := http.NewRequest(http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// pidHandle is a handle of a process that need not be our child.
type pidHandle struct{ pid, fd int }

func open(t *testing.T, pid int) pidHandle {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("open process %d: %v", pid, err)
	}
	t.Cleanup(func() { // a test that fails leaves no process either
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		unix.Close(fd)
	})
	return pidHandle{pid, fd}
}

// awaitEnd waits until the process is gone, or a zombie.
func (p pidHandle) awaitEnd(t *testing.T) {
	t.Helper()
	limit := time.Now().Add(patience)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(time.Until(limit).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			t.Fatal(err)
		case n == 0:
			t.Fatalf("process %d outlives its supervisor", p.pid)
		default:
			return
		}
	}
}
