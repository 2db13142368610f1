package maintenance_test

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
)

func haproxyOptions(h *testenv.HAProxy) maintenance.Options {
	return maintenance.Options{
		Handler: maintenance.HandlerHAProxy, HAProxySocket: h.Socket, HAProxyBackend: h.Backend,
		HAProxyStateFile: h.StateFile, ProbeURL: h.URL,
	}
}

// serverAdmin returns srv_admin_state of each server, in order.
func serverAdmin(t *testing.T, h *testenv.HAProxy) string {
	t.Helper()
	said, err := h.Command("show servers state " + h.Backend)
	must(t, err)
	var bits []string
	for line := range strings.Lines(said) {
		if f := strings.Fields(line); len(f) > 6 && f[0] != "#" {
			bits = append(bits, f[6])
		}
	}
	return strings.Join(bits, " ")
}

func command(t *testing.T, h *testenv.HAProxy, line string) {
	t.Helper()
	said, err := h.Command(line)
	must(t, err)
	if said != "" {
		t.Fatalf("%s: %s", line, said)
	}
}

// Known defect 20: HAProxy is never really switched, while the database says so.
func TestDefect20HAProxyServesThePageBetweenOldAndNew(t *testing.T) {
	for _, probed := range []bool{true, false} {
		t.Run(map[bool]string{true: "probed", false: "not probed"}[probed], func(t *testing.T) {
			a := newApp(t)
			h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address, a.address + " check", a.address}})
			opts := haproxyOptions(h)
			if !probed {
				opts.ProbeURL = ""
			}
			s := newSwitch(t, opts)
			state(t, s, false, false)
			deploy(t, s, a, h.URL, func() { page(t, h.URL) })
			if got := serverAdmin(t, h); got != "0 0 0" {
				t.Errorf("server states %q after the maintenance", got)
			}
			if exists(h.StateFile) {
				t.Error("the state file is still there")
			}
		})
	}
}

// With the shipped state file not one request slips through a reload.
func TestHAProxyReloadWhileOn(t *testing.T) {
	a := newApp(t)
	h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address, a.address}})
	s := newSwitch(t, haproxyOptions(h))
	deploy(t, s, a, h.URL, func() {
		for range 3 {
			must(t, h.Reload())
		}
	})
	if got := serverAdmin(t, h); got != "0 0" {
		t.Errorf("server states %q after the maintenance", got)
	}
	must(t, h.Reload())
	if got := serverAdmin(t, h); got != "0 0" {
		t.Errorf("server states %q after a later reload", got)
	}
}

// Without the state file a reload forgets, and the page is switched on again.
func TestHAProxyReloadForgetsAndThePageComesBack(t *testing.T) {
	a := newApp(t)
	h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address, a.address}, NoStateFile: true})
	opts := haproxyOptions(h)
	log := &testenv.Output{}
	opts.HAProxyStateFile, opts.Logger = "", newLogger(log)
	s := newSwitch(t, opts)
	must(t, s.Enter(t.Context(), "task-1"))
	must(t, h.Reload())
	eventually(t, "the page comes back", func() bool { return serverAdmin(t, h) == "1 1" })
	page(t, h.URL)
	eventually(t, "the log tells", func() bool { return strings.Contains(log.String(), "is on again") })
	must(t, s.Leave(t.Context(), "task-1"))
	if got := serverAdmin(t, h); got != "0 0" {
		t.Errorf("server states %q after the maintenance", got)
	}
}

func TestHAProxyNeverEndsAnOperatorsMaintenance(t *testing.T) {
	a := newApp(t)
	upstreams := []string{a.address, a.address, a.address}
	t.Run("of some servers", func(t *testing.T) {
		h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: append(upstreams, a.address), Disabled: []string{"app3"}})
		command(t, h, "set server wrktalk/app1 state maint")
		command(t, h, "set server wrktalk/app4 state drain")
		s := newSwitch(t, haproxyOptions(h))
		must(t, s.Enter(t.Context(), "task-1"))
		state(t, s, true, true)
		must(t, s.Leave(t.Context(), "task-1"))
		if got := serverAdmin(t, h); got != "1 0 5 8" {
			t.Errorf("server states %q, want the operator's: maintenance, ready, disabled, drain", got)
		}
	})
	t.Run("of all servers", func(t *testing.T) {
		h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: upstreams})
		for _, name := range []string{"app1", "app2", "app3"} {
			command(t, h, "set server wrktalk/"+name+" state maint")
		}
		s := newSwitch(t, haproxyOptions(h))
		state(t, s, true, false)
		must(t, s.Enter(t.Context(), "task-1"))
		state(t, s, true, false)
		must(t, s.Leave(t.Context(), "task-1"))
		must(t, s.Recover(t.Context(), ""))
		if got := serverAdmin(t, h); got != "1 1 1" {
			t.Errorf("server states %q", got)
		}
	})
}

// What is still open when the time is over is cut: it must not go on with a
// half-deployed application.
func TestHAProxyDrainsThenCuts(t *testing.T) {
	for _, c := range []struct {
		name  string
		drain time.Duration
		want  int
	}{
		{"answered in time", 2 * time.Minute, http.StatusOK},
		{"cut", 50 * time.Millisecond, http.StatusBadGateway},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newApp(t)
			h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address}})
			opts := haproxyOptions(h)
			opts.Timeout, opts.Drain = 4*time.Minute, c.drain
			s := newSwitch(t, opts)
			slow := make(chan int, 1)
			go func() {
				resp, err := http.Get(h.URL + "/slow")
				if err != nil {
					slow <- 0
					return
				}
				resp.Body.Close()
				slow <- resp.StatusCode
			}()
			<-a.waiting
			entered := make(chan error, 1)
			go func() { entered <- s.Enter(t.Context(), "task-1") }()
			eventually(t, "the page", func() bool { return serverAdmin(t, h) == "1" })
			if c.want == http.StatusOK {
				select {
				case err := <-entered:
					t.Fatalf("Enter() = %v before the request on its way was answered", err)
				default:
				}
				a.answerSlow()
			}
			must(t, <-entered)
			a.answerSlow() // too late for the one that was cut
			if got := <-slow; got != c.want {
				t.Errorf("the request on its way was answered with %d, want %d", got, c.want)
			}
		})
	}
}

// A new worker may have read the state file just before Leave removed it, and
// come up with the page on.
func TestHAProxyReloadWhileLeaving(t *testing.T) {
	a := newApp(t)
	h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address, a.address}})
	s := newSwitch(t, haproxyOptions(h))
	eventually(t, "a worker comes up before Leave looks again", func() bool {
		must(t, s.Enter(t.Context(), "task-1"))
		left, began := make(chan error, 1), time.Now()
		go func() { left <- s.Leave(t.Context(), "task-1") }()
		eventually(t, "the page goes", func() bool { return serverAdmin(t, h) == "0 0" })
		command(t, h, "set server wrktalk/app1 state maint")
		inTime := time.Since(began) < time.Second // which is when it looks again, at the earliest
		err := <-left
		if !inTime {
			command(t, h, "set server wrktalk/app1 state ready")
			return false
		}
		must(t, err)
		return true
	})
	if got := serverAdmin(t, h); got != "0 0" {
		t.Errorf("server states %q after the maintenance", got)
	}
}

func TestHAProxyOutOfReach(t *testing.T) {
	a := newApp(t)
	h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address}})
	weak := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address}, Level: "operator"})
	gone := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address}})
	must(t, gone.Stop())
	silent := filepath.Join(t.TempDir(), "silent.sock")
	listener, err := net.Listen("unix", silent)
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	theirs := filepath.Join(t.TempDir(), "haproxy.cfg")
	must(t, os.WriteFile(theirs, []byte("global\n"), 0o644))
	for _, c := range []struct {
		name string
		opts func(o *maintenance.Options)
		want []string
	}{
		{"no socket", func(o *maintenance.Options) { o.HAProxySocket = filepath.Join(t.TempDir(), "none.sock") }, []string{"there is no socket", "maintenance.haproxy_socket"}},
		{"nobody behind it", func(o *maintenance.Options) { o.HAProxySocket = gone.Socket }, []string{"HAProxy runs"}},
		{"the master's socket", func(o *maintenance.Options) { o.HAProxySocket = h.Master }, []string{"HAProxy's master process", "maintenance.haproxy_socket"}},
		{"another program's socket", func(o *maintenance.Options) { o.HAProxySocket, o.Timeout = silent, time.Second }, []string{"no answer in time", "stats socket"}},
		{"a state file that is none", func(o *maintenance.Options) { o.HAProxyStateFile = theirs }, []string{theirs, "maintenance.haproxy_state_file"}},
		{"no backend", func(o *maintenance.Options) { o.HAProxyBackend = "other" }, []string{"no such backend", "maintenance.haproxy_backend"}},
		{"level operator", func(o *maintenance.Options) { o.HAProxySocket = weak.Socket }, []string{"permission denied", "level admin"}},
		{"state file in no directory", func(o *maintenance.Options) { o.HAProxyStateFile = filepath.Join(t.TempDir(), "none", "state") }, []string{"state file", "maintenance.haproxy_state_file"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			opts := haproxyOptions(h)
			opts.ProbeURL = ""
			c.opts(&opts)
			s := newSwitch(t, opts)
			says(t, s.Enter(t.Context(), "task-1"), append(c.want, "enter maintenance: ")...)
			bad := 0
			for _, f := range s.Check(t.Context()) {
				if !f.OK {
					bad++
				}
			}
			if bad == 0 {
				t.Error("Check() finds nothing wrong")
			}
			must(t, s.Leave(t.Context(), "task-1"))
			if got := serverAdmin(t, h); got != "0" {
				t.Errorf("server states %q", got)
			}
		})
	}
	if b, err := os.ReadFile(theirs); err != nil || string(b) != "global\n" {
		t.Errorf("the file that is no state file holds %q, %v", b, err)
	}
}

// A HAProxy that is away when the page is to go off: the error stays until it is
// back, and then the page goes.
func TestHAProxyAwayAtTheEnd(t *testing.T) {
	a := newApp(t)
	h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address}})
	s := newSwitch(t, haproxyOptions(h))
	must(t, s.Enter(t.Context(), "task-1"))
	away := h.Socket + ".away"
	must(t, os.Rename(h.Socket, away))
	says(t, s.Leave(t.Context(), "task-1"), "leave maintenance: ", "there is no socket")
	says(t, s.Recover(t.Context(), ""), "leave maintenance: ", "there is no socket")
	must(t, os.Rename(away, h.Socket))
	eventually(t, "the page goes by itself", func() bool { on, _, err := s.State(t.Context()); return err == nil && !on })
	must(t, s.Recover(t.Context(), ""))
	if exists(h.StateFile) || serverAdmin(t, h) != "0" {
		t.Errorf("state file exists: %v, server states %q", exists(h.StateFile), serverAdmin(t, h))
	}
}
