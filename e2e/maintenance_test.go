package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// The reference's default handler is nginx, also on hosts without one: a page
// that cannot be put up is said in the result and the log and stops nothing,
// unless it is required; then nothing is touched. Defect 20.
func TestDefect20PageThatCannotBePutUpIsSaid(t *testing.T) {
	for _, required := range []bool{false, true} {
		name := map[bool]string{false: "not required", true: "required"}[required]
		t.Run(name, func(t *testing.T) {
			settings := []string{
				"WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER=nginx", "WRKTALK_AGENT_MAINTENANCE_RELOAD_COMMAND=false",
				"WRKTALK_AGENT_MAINTENANCE_FLAG_FILE=" + filepath.Join(t.TempDir(), "flag"),
			}
			if required {
				settings = append(settings, "WRKTALK_AGENT_MAINTENANCE_REQUIRED=true")
			}
			w := newWorld(t, settings...)
			image := testenv.AppImageWith(t, "1.0.0", 0)
			w.run()
			r := w.deploy(w.release("1.0.0", compose(image).tarball(t), ""))
			text := r.Error
			if !required {
				text, _ = r.Result["message"].(string)
			}
			if want := map[bool]string{false: "completed", true: "failed"}[required]; r.Status != want {
				t.Fatalf("task is %s, want %s", r.Raw, want)
			}
			if !strings.Contains(text, "maintenance") {
				t.Errorf("nothing is said about the page: %s", r.Raw)
			}
			if got := len(w.containers()); required != (got == 0) {
				t.Errorf("%d containers exist", got)
			}
			for _, m := range w.mails(2) {
				if !strings.Contains(string(m.Raw), "maintenance") {
					t.Error("a mail says nothing about the page")
				}
			}
			w.awaitClean()
		})
	}
}

// While a release is replaced under load, every client sees the old version, the
// page, and the new version, in that order, and the flag in the database
// follows.
func TestEveryAnswerIsOldThenPageThenNew(t *testing.T) {
	port := freePort(t)
	upstream := "127.0.0.1:" + port
	servers := map[string]func(t *testing.T) (url string, settings []string){
		"nginx": func(t *testing.T) (string, []string) {
			n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: upstream})
			return n.URL, []string{
				"WRKTALK_AGENT_MAINTENANCE_FLAG_FILE=" + n.FlagFile, "WRKTALK_AGENT_MAINTENANCE_RELOAD_COMMAND=" + n.ReloadCommand,
			}
		},
		"haproxy": func(t *testing.T) (string, []string) {
			h := testenv.NewHAProxy(t, testenv.HAProxyOptions{Upstreams: []string{upstream}})
			return h.URL, []string{
				"WRKTALK_AGENT_MAINTENANCE_HAPROXY_SOCKET=" + h.Socket, "WRKTALK_AGENT_MAINTENANCE_HAPROXY_BACKEND=" + h.Backend,
				"WRKTALK_AGENT_MAINTENANCE_HAPROXY_STATE_FILE=" + h.StateFile,
			}
		},
	}
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			url, settings := start(t)
			w := newWorld(t, append(settings, "WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER="+name, "WRKTALK_AGENT_MAINTENANCE_PROBE_URL="+url)...)
			w.sql(`create table seen (id serial, flag boolean);
				create function note() returns trigger language plpgsql security definer as $$ begin
					insert into seen (flag) values (new.maintenance_mode_enabled); return null; end $$;
				create trigger note after update of maintenance_mode_enabled on deployment_config for each row execute function note()`)
			var releases []string
			for _, v := range []string{"1.0.0", "1.1.0"} {
				b := compose(testenv.AppImageWith(t, v, 200*time.Millisecond), "ports: ['"+upstream+":8080']", "stop_grace_period: 0s")
				releases = append(releases, w.release(v, b.tarball(t), ""))
			}
			w.run()
			if r := w.deploy(releases[0]); r.Status != "completed" {
				t.Fatalf("first: %s", r.Raw)
			}
			w.sql(`delete from seen`)
			load := testenv.NewLoad(t, url, 8)
			load.Round()
			r := w.deploy(releases[1])
			load.Round()
			if err := testenv.InOrder(load.Stop(), "1.0.0", "503", "1.1.0"); err != nil {
				t.Error(err)
			}
			if r.Status != "completed" || strings.Contains(r.Result["message"].(string), "maintenance") {
				t.Errorf("task is %s", r.Raw)
			}
			w.awaitClean()
			if got := w.sql(`select string_agg(flag::text, ',' order by id) from seen`); got != "true,false" {
				t.Errorf("the flag was %s in turn", got)
			}
		})
	}
}

// freePort returns a port that the kernel gives to nobody by itself: while a
// container is replaced, nobody listens on it.
func freePort(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	var low, high int
	if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
		t.Fatal(err)
	}
	for range 10_000 {
		port := 10_000 + rand.IntN(1<<16-10_000)
		if port >= low && port <= high {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return strconv.Itoa(port)
		}
	}
	t.Fatalf("no port outside of %d to %d is free", low, high)
	return ""
}
