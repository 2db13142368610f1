package maintenance_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
)

func newLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func TestCommandsRunOnceEach(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	s := newSwitch(t, maintenance.Options{
		Handler: maintenance.HandlerCommand, EnterCommand: "echo enter >>" + log, LeaveCommand: "echo leave >>" + log,
	})
	must(t, s.Enter(t.Context(), "task-1"))
	state(t, s, true, true)
	must(t, s.Leave(t.Context(), "other")) // not its page
	state(t, s, true, true)
	must(t, s.Leave(t.Context(), "task-1"))
	must(t, s.Leave(t.Context(), "task-1"))
	must(t, s.Recover(t.Context(), ""))
	state(t, s, false, false)
	if b, _ := os.ReadFile(log); string(b) != "enter\nleave\n" {
		t.Errorf("ran %q", b)
	}
}

func TestCommandsThatFail(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, enter string
		timeout     time.Duration
		want        []string
	}{
		{"exit status", "echo first; echo the cable is out >&2; exit 3", 0, []string{"exit status 3: the cable is out", "maintenance.enter_command"}},
		{"missing", "no-such-command", 0, []string{"command not found"}},
		{"endless", "sleep 1000 & echo waiting; wait", 5 * time.Second, []string{"killed", "deadline exceeded: waiting"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSwitch(t, maintenance.Options{
				Handler: maintenance.HandlerCommand, EnterCommand: c.enter, LeaveCommand: "true", Timeout: c.timeout,
			})
			says(t, s.Enter(t.Context(), "task-1"), c.want...)
			state(t, s, false, false)
			must(t, s.Leave(t.Context(), "task-1"))
		})
	}
}

// A page that the leave command could not end is tried again by Recover.
func TestLeaveCommandThatFailsIsRepeated(t *testing.T) {
	off := filepath.Join(t.TempDir(), "allowed")
	s := newSwitch(t, maintenance.Options{
		Handler: maintenance.HandlerCommand, EnterCommand: "true", LeaveCommand: "test -e " + off,
	})
	must(t, s.Enter(t.Context(), "task-1"))
	err := s.Leave(t.Context(), "task-1")
	says(t, err, "leave maintenance: run maintenance.leave_command", "exit status 1")
	if strings.Contains(err.Error(), off) {
		t.Errorf("the error quotes the command, which may hold a password: %v", err)
	}
	state(t, s, true, true)
	must(t, os.WriteFile(off, nil, 0o600))
	must(t, s.Recover(t.Context(), ""))
	state(t, s, false, false)
}

// The group is killed, not the shell alone.
func TestCommandLeavesNothingBehind(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	s := newSwitch(t, maintenance.Options{
		Handler: maintenance.HandlerCommand, EnterCommand: "sleep 1000 & echo $! >" + pid + "; wait", LeaveCommand: "true",
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	entered := make(chan error, 1)
	go func() { entered <- s.Enter(ctx, "task-1") }()
	child := ""
	eventually(t, "the child runs", func() bool {
		b, _ := os.ReadFile(pid)
		child = strings.TrimSuffix(string(b), "\n")
		return child != string(b)
	})
	cancel(errors.New("the run is over"))
	says(t, <-entered, "killed: the run is over")
	eventually(t, "the child is dead", func() bool {
		stat, err := os.ReadFile("/proc/" + child + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// A command may start a daemon that inherits the output.
func TestCommandThatStartsADaemon(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	s := newSwitch(t, maintenance.Options{
		Handler: maintenance.HandlerCommand, EnterCommand: "sleep 1000 & echo $! >" + pid, LeaveCommand: "kill $(cat " + pid + ")",
	})
	must(t, s.Enter(t.Context(), "task-1"))
	must(t, s.Leave(t.Context(), "task-1")) // fails when the daemon is gone
}

func TestCommandsSeeNoSecrets(t *testing.T) {
	t.Setenv("WRKTALK_AGENT_DB_PASSWORD", "hunter2")
	t.Setenv("PGPASSWORD", "hunter2")
	env := filepath.Join(t.TempDir(), "env")
	s := newSwitch(t, maintenance.Options{Handler: maintenance.HandlerCommand, EnterCommand: "env >" + env, LeaveCommand: "true"})
	must(t, s.Enter(t.Context(), "task-1"))
	b, err := os.ReadFile(env)
	must(t, err)
	if strings.Contains(string(b), "hunter2") || !strings.Contains(string(b), "/usr/sbin") {
		t.Errorf("environment of the command:\n%s", b)
	}
	must(t, s.Leave(t.Context(), "task-1"))
}

// With a probe URL an operator's page is recognised, and neither command runs.
func TestCommandNeverEndsAnOperatorsMaintenance(t *testing.T) {
	var on atomic.Bool
	on.Store(true)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if on.Load() {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(site.Close)
	log := filepath.Join(t.TempDir(), "log")
	s := newSwitch(t, maintenance.Options{
		Handler: maintenance.HandlerCommand, EnterCommand: "echo enter >>" + log, LeaveCommand: "echo leave >>" + log, ProbeURL: site.URL,
	})
	must(t, s.Enter(t.Context(), "task-1"))
	state(t, s, true, false)
	must(t, s.Leave(t.Context(), "task-1"))
	must(t, s.Recover(t.Context(), ""))
	if exists(log) {
		b, _ := os.ReadFile(log)
		t.Errorf("ran %q", b)
	}
	on.Store(false)
	state(t, s, false, false)
}

func TestProbe(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		handler      http.HandlerFunc
		enter, leave string // what the errors say, "" for none
	}{
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://example.invalid/", http.StatusMovedPermanently)
		}, "answers 301 instead of 503", ""},
		{"always 503", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "", "answers 503 although the page was switched off"},
		{"silent", func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}, "deadline exceeded", "deadline exceeded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// TLS with a certificate nobody knows: on loopback that is no obstacle.
			site := httptest.NewTLSServer(c.handler)
			t.Cleanup(site.Close)
			s := newSwitch(t, maintenance.Options{
				Handler: maintenance.HandlerCommand, EnterCommand: "true", LeaveCommand: "true", ProbeURL: site.URL, Timeout: 5 * time.Second,
			})
			for _, step := range []struct {
				err  error
				want string
			}{{s.Enter(t.Context(), "task-1"), c.enter}, {s.Leave(t.Context(), "task-1"), c.leave}} {
				if step.want == "" {
					must(t, step.err)
				} else {
					says(t, step.err, step.want, "probe")
				}
			}
			must(t, s.Recover(t.Context(), "")) // the page is off, whatever the probe said
		})
	}
}

func TestNone(t *testing.T) {
	s := newSwitch(t, maintenance.Options{})
	must(t, s.Enter(t.Context(), "task-1"))
	state(t, s, false, false)
	must(t, s.Leave(t.Context(), "task-1"))
	must(t, s.Recover(t.Context(), "task-1"))
}

func TestOptionsThatCannotWork(t *testing.T) {
	for _, c := range []struct {
		name string
		opts maintenance.Options
		want string
	}{
		{"handler", maintenance.Options{Handler: "apache"}, `"apache"`},
		{"flag file", maintenance.Options{Handler: "nginx", FlagFile: "flag"}, "maintenance.flag_file"},
		{"socket", maintenance.Options{Handler: "haproxy", HAProxyBackend: "b"}, "maintenance.haproxy_socket"},
		{"backend", maintenance.Options{Handler: "haproxy", HAProxySocket: "/s", HAProxyBackend: "b; show env"}, "maintenance.haproxy_backend"},
		{"state file of HAProxy", maintenance.Options{Handler: "haproxy", HAProxySocket: "/s", HAProxyBackend: "b", HAProxyStateFile: "x"}, "maintenance.haproxy_state_file"},
		{"commands", maintenance.Options{Handler: "command", EnterCommand: "true"}, "maintenance.leave_command"},
		{"probe", maintenance.Options{ProbeURL: "file:///etc/passwd"}, "maintenance.probe_url"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.StateFile = "/state"
			_, err := maintenance.New(c.opts)
			says(t, err, c.want)
		})
	}
	_, err := maintenance.New(maintenance.Options{StateFile: "relative"})
	says(t, err, "state file")
}
