//go:build faultinject

package maintenance_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
)

// crashVar holds the options, as JSON, of the process that is to be killed: it
// enters and leaves once.
const crashVar = "MAINTENANCE_CRASH_OPTIONS"

func TestMain(m *testing.M) {
	if doc := os.Getenv(crashVar); doc != "" {
		if err := enterAndLeave(doc); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func enterAndLeave(doc string) error {
	var opts maintenance.Options
	if err := json.Unmarshal([]byte(doc), &opts); err != nil {
		return err
	}
	opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := maintenance.New(opts)
	if err != nil {
		return err
	}
	return errors.Join(s.Enter(context.Background(), "task-1"), s.Leave(context.Background(), "task-1"))
}

// A kill at every single step, on the way in and on the way out: Recover leaves
// no page behind, and no trace of one.
func TestKilledAtEveryStep(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address, a.address}})
	commanded := filepath.Join(t.TempDir(), "on")
	for _, c := range []struct {
		name  string
		opts  maintenance.Options
		url   string
		steps int           // at least so many
		left  func() string // what is still switched on, "" for nothing
	}{
		{"nginx", nginxOptions(n), n.URL, 15, func() string {
			names, _ := os.ReadDir(filepath.Dir(n.FlagFile))
			if len(names) > 0 {
				return fmt.Sprint(names)
			}
			return ""
		}},
		{"haproxy", haproxyOptions(h), h.URL, 20, func() string {
			if exists(h.StateFile) {
				return "state file"
			}
			if admin := serverAdmin(t, h); admin != "0 0" {
				return "servers " + admin
			}
			return ""
		}},
		{"command", maintenance.Options{
			Handler: maintenance.HandlerCommand, EnterCommand: "touch " + commanded, LeaveCommand: "rm -f " + commanded,
		}, "", 8, func() string {
			if exists(commanded) {
				return commanded
			}
			return ""
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.StateFile = filepath.Join(t.TempDir(), "maintenance.json")
			trace := filepath.Join(t.TempDir(), "trace")
			if err := runKilled(t, c.opts, "trace="+trace); err != nil {
				t.Fatalf("undisturbed: %v", err)
			}
			b, err := os.ReadFile(trace)
			must(t, err)
			labels := strings.Split(strings.TrimSpace(string(b)), "\n")
			if len(labels) < c.steps {
				t.Fatalf("only %d steps: %q", len(labels), labels)
			}
			for i, label := range labels {
				err := runKilled(t, c.opts, fmt.Sprintf("kill:*:%d", i+1))
				var exit *exec.ExitError
				if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
					t.Fatalf("step %d, %s: not killed: %v", i+1, label, err)
				}
				s := newSwitch(t, c.opts)
				must(t, s.Recover(t.Context(), ""))
				if left := c.left(); left != "" || exists(c.opts.StateFile) {
					t.Fatalf("killed at step %d, %s: left behind: %s, record %v", i+1, label, left, exists(c.opts.StateFile))
				}
				state(t, s, false, false)
				if c.url != "" {
					if status, _, _ := get(t, http.MethodGet, c.url); status != http.StatusOK {
						t.Fatalf("killed at step %d, %s: status %d", i+1, label, status)
					}
				}
			}
		})
	}
}

func runKilled(t *testing.T, opts maintenance.Options, instruction string) error {
	t.Helper()
	doc, err := json.Marshal(opts)
	must(t, err)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashVar+"="+string(doc), fault.EnvVar+"="+instruction)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// An operator may be faster, between the look at the flag and its creation.
func TestFlagOfAnOperatorWhoWasFaster(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "maintenance-mode")
	s := newSwitch(t, maintenance.Options{Handler: maintenance.HandlerNginx, FlagFile: flag, ReloadCommand: "true"})
	restore := fault.Set(func(label string) error {
		if strings.HasPrefix(label, "maintenance.flag.rename:") {
			return os.WriteFile(flag, []byte("closed until Monday\n"), 0o644)
		}
		return nil
	})
	t.Cleanup(restore)
	must(t, s.Enter(t.Context(), "task-1"))
	state(t, s, true, false)
	must(t, s.Leave(t.Context(), "task-1"))
	if b, _ := os.ReadFile(flag); string(b) != "closed until Monday\n" {
		t.Errorf("the operator's flag holds %q", b)
	}
	if names, _ := os.ReadDir(filepath.Dir(flag)); len(names) != 1 {
		t.Errorf("something was left behind: %v", names)
	}
}

// A disk that is full when the record is to be written: nothing is switched.
func TestNothingIsSwitchedWithoutARecord(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "maintenance-mode")
	s := newSwitch(t, maintenance.Options{Handler: maintenance.HandlerNginx, FlagFile: flag, ReloadCommand: "true"})
	restore := fault.Set(func(label string) error {
		if strings.HasPrefix(label, "durable.writefile.write:") {
			return syscall.ENOSPC
		}
		return nil
	})
	t.Cleanup(restore)
	says(t, s.Enter(t.Context(), "task-1"), "enter maintenance: keep maintenance record", "no space left")
	if exists(flag) {
		t.Error("the flag file was created")
	}
	must(t, s.Leave(t.Context(), "task-1"))
}
