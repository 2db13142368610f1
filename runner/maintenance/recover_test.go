package maintenance_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
)

// Whatever a kill leaves on disk, between the record, the flag and the reload,
// on the way in and on the way out, Recover ends it, and an operator's flag is
// not touched.
func TestRecoverNginxFromEveryPrefix(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	mark, at := "wrktalk-agent NONCE task-1\n", time.Now().Truncate(2*time.Second).UTC()
	temp := filepath.Join(filepath.Dir(n.FlagFile), ".maintenance-mode-NONCE")
	flag := func(t *testing.T, name, content string, mtime time.Time) {
		must(t, os.WriteFile(name, []byte(content), 0o644))
		must(t, os.Chtimes(name, mtime, mtime))
	}
	for _, c := range []struct {
		name     string
		disk     func(t *testing.T)
		operator bool // the flag stays
	}{
		{"record", func(*testing.T) {}, false},
		{"record, half a flag", func(t *testing.T) { flag(t, temp, mark[:5], time.Now()) }, false},
		{"record, a flag without its name", func(t *testing.T) { flag(t, temp, mark, at) }, false},
		{"record, flag", func(t *testing.T) { flag(t, n.FlagFile, mark, at) }, false},
		{"record, an operator's flag", func(t *testing.T) { flag(t, n.FlagFile, "", time.Now()) }, true},
		{"record, our flag that an operator touched", func(t *testing.T) { flag(t, n.FlagFile, mark, time.Now().Add(time.Hour)) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			opts := nginxOptions(n)
			opts.StateFile = filepath.Join(t.TempDir(), "maintenance.json")
			b, err := json.Marshal(map[string]any{
				"schema": 1, "owner": "task-1", "mark": mark, "flag_time": at,
				"target": map[string]string{"handler": "nginx", "flag_file": n.FlagFile, "reload_command": n.ReloadCommand},
			})
			must(t, err)
			must(t, os.WriteFile(opts.StateFile, b, 0o600))
			c.disk(t)
			must(t, newSwitch(t, opts).Recover(t.Context(), "task-2"))
			if got := exists(n.FlagFile); got != c.operator {
				t.Errorf("flag file exists: %v, want %v", got, c.operator)
			}
			if exists(opts.StateFile) || exists(temp) {
				t.Error("something was left behind")
			}
			state(t, newSwitch(t, opts), c.operator, false)
			_ = os.Remove(n.FlagFile)
		})
	}
}

// The run that the page is for may still be on after a crash of the runner: then
// the page stays, and is kept on again.
func TestRecoverForTheActiveOwnerKeepsThePage(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	opts := nginxOptions(n)
	opts.StateFile = filepath.Join(t.TempDir(), "maintenance.json")
	before := newSwitch(t, opts)
	must(t, before.Enter(t.Context(), "task-1"))
	before.Close() // as a crash does: nothing is switched

	after := newSwitch(t, opts)
	must(t, after.Recover(t.Context(), "task-1"))
	must(t, after.Recover(t.Context(), "task-1"))
	state(t, after, true, true)
	must(t, os.Remove(n.FlagFile))
	eventually(t, "the flag comes back", func() bool { return exists(n.FlagFile) })
	must(t, after.Recover(t.Context(), "")) // the run is over now
	state(t, after, false, false)
}

// The configuration may change while the page is on: what was switched is what
// is switched back.
func TestRecoverAfterTheConfigurationChanged(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address}})
	opts := haproxyOptions(h)
	opts.StateFile = filepath.Join(t.TempDir(), "maintenance.json")
	before := newSwitch(t, opts)
	must(t, before.Enter(t.Context(), "task-1"))
	before.Close()

	changed := nginxOptions(n)
	changed.StateFile = opts.StateFile
	after := newSwitch(t, changed)
	must(t, after.Enter(t.Context(), "task-1"))
	if got := serverAdmin(t, h); got != "0" {
		t.Errorf("HAProxy's server states %q", got)
	}
	state(t, after, true, true)
	after.Close()
	must(t, newSwitch(t, maintenance.Options{StateFile: opts.StateFile}).Recover(t.Context(), ""))
	state(t, after, false, false)
}

func TestRecoverFromAnUnreadableRecord(t *testing.T) {
	opts := maintenance.Options{StateFile: filepath.Join(t.TempDir(), "maintenance.json")}
	for _, text := range []string{"", "{", `{"schema":99}`} {
		must(t, os.WriteFile(opts.StateFile, []byte(text), 0o600))
		says(t, newSwitch(t, opts).Recover(t.Context(), ""), "recover maintenance: ", opts.StateFile, "remove the file")
	}
}

// The file on disk is read as releases up to now have written it.
func TestRecoverReadsTheRecordOfAnEarlierRelease(t *testing.T) {
	a := newApp(t)
	h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address, a.address, a.address}})
	for _, name := range []string{"app1", "app2", "app3"} {
		command(t, h, "set server wrktalk/"+name+" state maint")
	}
	opts := maintenance.Options{StateFile: filepath.Join(t.TempDir(), "maintenance.json")}
	must(t, os.WriteFile(opts.StateFile, fmt.Appendf(nil, `{
  "schema": 1,
  "owner": "task-1",
  "entered_at": "2026-03-01T10:00:00.5Z",
  "confirmed": true,
  "target": {
    "handler": "haproxy",
    "haproxy_socket": %q,
    "haproxy_backend": %q,
    "haproxy_state_file": %q
  },
  "mark": "wrktalk-agent NONCE task-1\n",
  "flag_time": "2026-03-01T10:00:00Z",
  "servers": [
    {"name": "app1", "restore": "ready"},
    {"name": "app2", "restore": "drain"}
  ]
}
`, h.Socket, h.Backend, h.StateFile), 0o600))
	must(t, newSwitch(t, opts).Recover(t.Context(), ""))
	if got := serverAdmin(t, h); got != "0 8 1" {
		t.Errorf("server states %q, want ready, drain, and the operator's maintenance", got)
	}
	if exists(opts.StateFile) {
		t.Error("the record is still there")
	}
}

// A second run of the same agent takes the page over without a gap.
func TestEnterTakesOverFromAnEarlierRun(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	opts := nginxOptions(n)
	opts.StateFile = filepath.Join(t.TempDir(), "maintenance.json")
	before := newSwitch(t, opts)
	must(t, before.Enter(t.Context(), "task-1"))
	before.Close()
	load := testenv.NewLoad(t, n.URL, 4)
	load.Round()
	after := newSwitch(t, opts)
	must(t, after.Enter(t.Context(), "task-2"))
	load.Round()
	must(t, after.Leave(t.Context(), "task-1")) // fenced: not its page any more
	load.Round()
	if err := testenv.InOrder(load.Stop(), "503"); err != nil {
		t.Error(err)
	}
	must(t, after.Leave(t.Context(), "task-2"))
	state(t, after, false, false)
}

func TestCheck(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{a.address}})
	elsewhere := nginxOptions(n)
	elsewhere.FlagFile = filepath.Join(t.TempDir(), "other-flag")
	missing := nginxOptions(n)
	missing.ReloadCommand = "no-such-nginx -s reload"
	flag := func(make func(path string) error) maintenance.Options {
		path := filepath.Join(t.TempDir(), "flag")
		must(t, make(path))
		return maintenance.Options{Handler: maintenance.HandlerNginx, FlagFile: path, ReloadCommand: "true"}
	}
	text := func(path string) error { return os.WriteFile(path, []byte("user nginx;\n"), 0o644) }
	giveAway := func(path string) error {
		return errors.Join(os.WriteFile(path, []byte("theirs"), 0o644), os.Chown(path, 12345, -1))
	}
	theirs, made := maintenance.Options{}, []string(nil)
	if os.Geteuid() == 0 { // only root can give a file away
		theirs, made = flag(giveAway), []string{"made by user 12345"}
	}
	stranger := maintenance.Options{StateFile: filepath.Join(t.TempDir(), "maintenance.json")}
	must(t, os.WriteFile(stranger.StateFile, []byte(`{"schema":1,"owner":"x","target":{"handler":"command","leave_command":"id"}}`), 0o644))
	must(t, os.Chmod(stranger.StateFile, 0o666))
	stranger.Handler, stranger.EnterCommand, stranger.LeaveCommand = maintenance.HandlerCommand, "true", "true"
	nowhere := maintenance.Options{StateFile: filepath.Join(flag(text).FlagFile, "state", "maintenance.json")}
	nowhere.Handler, nowhere.EnterCommand, nowhere.LeaveCommand = maintenance.HandlerCommand, "true", "true"
	for _, c := range []struct {
		name string
		opts maintenance.Options
		want []string // of what is wrong, in order
	}{
		{"an operator's flag", flag(func(path string) error { return os.WriteFile(path, nil, 0o644) }), nil},
		{"a file that is no flag", flag(text), []string{"12 bytes that are not the agent's"}},
		{"a stranger's flag", theirs, made},
		{"a directory for a flag", flag(func(path string) error { return os.Mkdir(path, 0o755) }), []string{"is in the way"}},
		{"a record that anybody may write", stranger, []string{"others than the agent's user may have written it"}},
		{"no place for the record", nowhere, []string{"read maintenance record"}},
		{"nginx", nginxOptions(n), nil},
		{"haproxy", haproxyOptions(h), nil},
		{"none", maintenance.Options{}, nil},
		{"command", maintenance.Options{Handler: maintenance.HandlerCommand, EnterCommand: "false", LeaveCommand: "false"}, nil},
		{"snippet not included", elsewhere, []string{"does not look for"}},
		{"nginx not installed", missing, []string{"not installed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			found := newSwitch(t, c.opts).Check(t.Context())
			if len(found) == 0 {
				t.Error("nothing was looked at")
			}
			var bad []string
			for _, f := range found {
				if !f.OK {
					bad = append(bad, f.Text)
				}
			}
			if len(bad) != len(c.want) {
				t.Fatalf("wrong: %q, want %q", bad, c.want)
			}
			for i, want := range c.want {
				says(t, errorText(bad[i]), want)
			}
		})
	}
}

type errorText string

func (e errorText) Error() string { return string(e) }
