package e2e

import (
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// The troubleshooting section of the v4.2 reference, on a broken system of each
// kind: one check or one status finds the cause, and says what to do.
func TestTroubleshooting(t *testing.T) {
	t.Parallel()
	finds := func(t *testing.T, w *world, command string, code int, texts ...string) {
		t.Helper()
		out, stderr, got := w.command(command)
		if got != code {
			t.Errorf("%s: exit code %d, want %d", command, got, code)
		}
		for _, text := range texts {
			if !strings.Contains(out+stderr, text) {
				t.Errorf("%s does not say %q:\n%s%s", command, text, out, stderr)
			}
		}
		if strings.Contains(out+stderr, dbPassword) {
			t.Errorf("%s shows the password:\n%s%s", command, out, stderr)
		}
	}
	t.Run("wrong password", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.env = append(w.env, "WRKTALK_AGENT_DB_PASSWORD=no such password")
		finds(t, w, "check", 1, "password", "postgres", "db.password")
		finds(t, w, "status", 1, "password")
	})
	t.Run("no such database", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.env = append(w.env, "WRKTALK_AGENT_DB_NAME=no_such_database")
		finds(t, w, "check", 1, "no_such_database", "db.name")
	})
	t.Run("no task is due", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run()
		id := w.sql(`insert into agent_task (type, release_artifact_id, execute_after)
			values ('deploy', '%s', now() + interval '1 day') returning id`, w.release("1.0.0", compose("none").tarball(t), ""))
		w.eventually("the agent has asked", func() bool { return w.sql(`select count(last_agent_poll) from deployment_config`) == "1" })
		finds(t, w, "status", 0, id[:8], "1.0.0", "until")
	})
	t.Run("a task of the other kind", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.sql(`with a as (insert into release_artifact (release_version, chart_type, artifact_data, sha256)
			values ('3.0.0', 'helm', '\x00', 'x') returning id)
			insert into agent_task (type, release_artifact_id) select 'deploy', id from a`)
		finds(t, w, "status", 0, "1 due task", "helm")
	})
	t.Run("no agent asks", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.ask("deploy", w.release("1.0.0", compose("none").tarball(t), ""))
		finds(t, w, "status", 0, "no agent has ever asked", "wrktalk-agent run")
	})
	t.Run("mail server down", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.sql(`update deployment_config set smtp_host = '127.0.0.1', smtp_port = 9`)
		finds(t, w, "check", 1, "127.0.0.1:9", "refused", "smtp_host")
	})
	t.Run("bad artifact", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.run()
		w.deploy(w.release("9.9.9", []byte("this is no archive"), ""))
		finds(t, w, "status", 0, "9.9.9", "not a gzip'd tar")
	})
	t.Run("maintenance misconfigured", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: "127.0.0.1:9"})
		w.env = append(w.env, "WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER=nginx", "WRKTALK_AGENT_MAINTENANCE_FLAG_FILE="+w.dir+"/elsewhere",
			"WRKTALK_AGENT_MAINTENANCE_RELOAD_COMMAND="+n.ReloadCommand)
		out, stderr, _ := w.command("check")
		if want := "does not look for " + w.dir + "/elsewhere"; !strings.Contains(out+stderr, want) {
			t.Errorf("check does not say %q:\n%s%s", want, out, stderr)
		}
	})
}
