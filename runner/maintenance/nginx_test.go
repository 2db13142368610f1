package maintenance_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
)

func nginxOptions(n *testenv.Nginx) maintenance.Options {
	return maintenance.Options{
		Handler: maintenance.HandlerNginx, FlagFile: n.FlagFile, ReloadCommand: n.ReloadCommand, ProbeURL: n.URL,
	}
}

// Known defect 20: nginx is never really switched, while the database says so.
func TestDefect20NginxServesThePageBetweenOldAndNew(t *testing.T) {
	for _, probed := range []bool{true, false} {
		t.Run(map[bool]string{true: "probed", false: "not probed"}[probed], func(t *testing.T) {
			a := newApp(t)
			n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
			opts := nginxOptions(n)
			if !probed {
				opts.ProbeURL = ""
			}
			s := newSwitch(t, opts)
			state(t, s, false, false)
			deploy(t, s, a, n.URL, func() { page(t, n.URL) })
			if exists(n.FlagFile) {
				t.Error("the flag file is still there")
			}
		})
	}
}

func TestNginxWaitsForRequestsOnTheirWay(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	opts := nginxOptions(n)
	opts.Timeout, opts.Drain = 4*time.Minute, 2*time.Minute
	s := newSwitch(t, opts)
	slow := make(chan int, 1)
	go func() {
		resp, err := http.Get(n.URL + "/slow")
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
	eventually(t, "the flag", func() bool { return exists(n.FlagFile) })
	// An Enter that does not wait has the time to return, slow as the machine may
	// be: it asks nginx for its configuration once, and the probe once.
	for range 10 {
		must(t, exec.Command("/bin/sh", "-c", strings.Replace(n.ReloadCommand, "-s reload", "-T", 1)).Run())
	}
	for range 100 {
		if status, _, _ := get(t, http.MethodGet, n.URL); status != http.StatusServiceUnavailable {
			t.Fatalf("status %d while the last request is being answered", status)
		}
	}
	select {
	case err := <-entered:
		t.Fatalf("Enter() = %v before the request on its way was answered", err)
	default:
	}
	a.answerSlow()
	must(t, <-entered)
	if got := <-slow; got != http.StatusOK {
		t.Errorf("the request on its way was answered with %d", got)
	}
}

func TestNginxKeepsTheFlag(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	s := newSwitch(t, nginxOptions(n))
	must(t, s.Enter(t.Context(), "task-1"))
	must(t, os.Remove(n.FlagFile))
	eventually(t, "the flag comes back", func() bool { return exists(n.FlagFile) })
	must(t, s.Leave(t.Context(), "task-1"))
	status, _, _ := get(t, http.MethodGet, n.URL)
	if status != http.StatusOK {
		t.Errorf("status %d after the maintenance", status)
	}
}

func TestNginxNeverEndsAnOperatorsMaintenance(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	touch := func(t *testing.T) { must(t, os.WriteFile(n.FlagFile, nil, 0o600)) }
	for _, c := range []struct {
		name   string
		before func(*testing.T)
		during func(*testing.T)
		byUs   bool
	}{
		{name: "on before", before: touch},
		{name: "through a link", before: func(t *testing.T) { must(t, os.Symlink("/etc/hostname", n.FlagFile)) }},
		{name: "touched meanwhile", byUs: true, during: func(t *testing.T) {
			must(t, os.Chtimes(n.FlagFile, time.Time{}, time.Now()))
		}},
		{name: "replaced meanwhile", byUs: true, during: func(t *testing.T) {
			next := n.FlagFile + ".next"
			must(t, os.WriteFile(next, []byte("closed until Monday\n"), 0o644))
			must(t, os.Rename(next, n.FlagFile))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSwitch(t, nginxOptions(n))
			if c.before != nil {
				c.before(t)
				state(t, s, true, false)
			}
			must(t, s.Enter(t.Context(), "task-1"))
			state(t, s, true, c.byUs)
			if c.during != nil {
				c.during(t)
			}
			must(t, s.Leave(t.Context(), "task-1"))
			must(t, s.Recover(t.Context(), ""))
			state(t, s, true, false)
			page(t, n.URL)
			must(t, os.Remove(n.FlagFile))
		})
	}
}

// An operator who ends his own maintenance in the middle of a deployment must
// not let clients through to it.
func TestNginxTakesOverFromAnOperator(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	opts := nginxOptions(n)
	opts.ProbeURL = ""
	s := newSwitch(t, opts)
	must(t, os.WriteFile(n.FlagFile, nil, 0o644))
	must(t, s.Enter(t.Context(), "task-1"))
	must(t, os.Remove(n.FlagFile))
	eventually(t, "a flag of the agent's own", func() bool {
		b, _ := os.ReadFile(n.FlagFile)
		return strings.HasPrefix(string(b), "wrktalk-agent ")
	})
	eventually(t, "the state", func() bool { on, byUs, _ := s.State(t.Context()); return on && byUs })
	must(t, s.Leave(t.Context(), "task-1"))
	state(t, s, false, false)
}

func TestFlagFileFollowsAndReplacesNothing(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant func(t *testing.T, flag, victim string)
		want  string
	}{
		{"dangling link", func(t *testing.T, flag, victim string) { must(t, os.Symlink(victim, flag)) }, "is in the way"},
		{"directory", func(t *testing.T, flag, _ string) { must(t, os.Mkdir(flag, 0o755)) }, "is in the way"},
		{"no directory above", func(t *testing.T, flag, _ string) { must(t, os.Remove(filepath.Dir(flag))) }, "change maintenance.flag_file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "flags")
			must(t, os.Mkdir(dir, 0o755))
			flag, victim := filepath.Join(dir, "maintenance-mode"), filepath.Join(t.TempDir(), "victim")
			c.plant(t, flag, victim)
			s := newSwitch(t, maintenance.Options{Handler: maintenance.HandlerNginx, FlagFile: flag, ReloadCommand: "true"})
			says(t, s.Enter(t.Context(), "task-1"), "enter maintenance: ", c.want)
			must(t, s.Leave(t.Context(), "task-1"))
			if exists(victim) {
				t.Error("the link was written through")
			}
			if names, _ := os.ReadDir(dir); len(names) > 1 {
				t.Errorf("something was left behind: %v", names)
			}
			state := func() bool { on, _, err := s.State(t.Context()); return on && err == nil }
			if state() {
				t.Error("State() says that the page is on")
			}
		})
	}
}

func TestFlagFileIsForEveryoneToSee(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "maintenance-mode")
	s := newSwitch(t, maintenance.Options{Handler: maintenance.HandlerNginx, FlagFile: flag, ReloadCommand: "true"})
	must(t, s.Enter(t.Context(), "task-1"))
	fi, err := os.Lstat(flag)
	must(t, err)
	if fi.Mode() != 0o644 {
		t.Errorf("mode %v", fi.Mode())
	}
	b, err := os.ReadFile(flag)
	must(t, err)
	if !strings.HasPrefix(string(b), "wrktalk-agent ") || !strings.HasSuffix(string(b), " task-1\n") {
		t.Errorf("content %q", b)
	}
	must(t, s.Leave(t.Context(), "task-1"))
	if names, _ := os.ReadDir(filepath.Dir(flag)); len(names) != 0 {
		t.Errorf("something was left behind: %v", names)
	}
}

func TestNginxIsReloadedAfterEachChangeOfTheFlag(t *testing.T) {
	dir := t.TempDir()
	flag, log := filepath.Join(dir, "flag"), filepath.Join(dir, "log")
	s := newSwitch(t, maintenance.Options{
		Handler: maintenance.HandlerNginx, FlagFile: flag,
		ReloadCommand: "if test -e " + flag + "; then echo on; else echo off; fi >>" + log,
	})
	must(t, s.Enter(t.Context(), "task-1"))
	must(t, s.Leave(t.Context(), "task-1"))
	if b, _ := os.ReadFile(log); string(b) != "on\noff\n" {
		t.Errorf("at the reloads the flag was %q", b)
	}
}

// The reference's default handler is nginx, also on hosts without one: Enter
// says so, nothing claims that the page is on, and nothing is left behind.
func TestNginxMissing(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	for _, c := range []struct {
		name, reload, probe string
		want                []string
	}{
		{"not installed", "no-such-nginx -s reload", "", []string{"reload nginx", "no-such-nginx", "command not found", "maintenance.mode_handler"}},
		{"not running", "", "", []string{"reload nginx", "exit status 1", "nginx.pid"}},
		{"refused by the probe", "true", "http://" + a.address, []string{"answers 200 instead of 503", "snippet"}},
		{"nobody there", "true", "http://127.0.0.1:1", []string{"probe", "connection refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			opts := nginxOptions(n)
			opts.ProbeURL = c.probe
			if c.probe != "" {
				opts.Timeout = 5 * time.Second // until then the probe asks again
			}
			opts.ReloadCommand = c.reload
			if c.reload == "" {
				must(t, n.Stop())
				opts.ReloadCommand = n.ReloadCommand
			}
			s := newSwitch(t, opts)
			says(t, s.Enter(t.Context(), "task-1"), append(c.want, "enter maintenance: ")...)
			if on, _, err := s.State(t.Context()); on || c.probe == "" && err != nil {
				t.Errorf("State() = %v, %v", on, err)
			}
			err := s.Leave(t.Context(), "task-1")
			if c.name == "nobody there" {
				says(t, err, "leave maintenance: ", "connection refused")
			} else if err != nil {
				t.Errorf("Leave() says again what Enter said: %v", err)
			}
			if exists(n.FlagFile) {
				t.Error("the flag file is still there")
			}
			must(t, s.Recover(t.Context(), ""))
		})
	}
}

// A reload that fails, or is not wanted, is forgiven when the page is seen to be on.
func TestNginxReloadFailsButThePageServes(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	for _, reload := range []string{"false", ""} {
		a.serve("old")
		opts := nginxOptions(n)
		opts.ReloadCommand = reload
		deploy(t, newSwitch(t, opts), a, n.URL, nil)
	}
}

// A reload that succeeds proves nothing: nginx without the snippet, or with
// another path in it, goes on serving the application. Nobody is told that the
// page is on.
func TestNginxThatDoesNotLookForTheFlag(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	s := newSwitch(t, maintenance.Options{
		Handler: maintenance.HandlerNginx, FlagFile: filepath.Join(t.TempDir(), "elsewhere"), ReloadCommand: n.ReloadCommand,
	})
	err := s.Enter(t.Context(), "task-1")
	if err == nil || !strings.Contains(err.Error(), "does not look for") || !strings.Contains(err.Error(), "include wrktalk-maintenance.conf") {
		t.Errorf("Enter() = %v", err)
	}
	must(t, s.Leave(t.Context(), "task-1"))
	state(t, s, false, false)
}
