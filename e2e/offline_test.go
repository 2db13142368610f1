package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// severed puts something between the world's agent and its database that can be
// refused. What is done meanwhile the agent adds as a row, a right of its own.
func (w *world) severed() *testenv.Proxy {
	w.t.Helper()
	w.sql("grant insert on agent_task to " + agentRole)
	p := testenv.NewProxy(w.t, "127.0.0.1:"+strconv.Itoa(protected.server.Port))
	w.env = append(w.env, "WRKTALK_AGENT_DB_PORT="+strconv.Itoa(p.Port))
	return p
}

// offlineRow returns the row that an offline rollback was recorded as.
func (w *world) offlineRow() row {
	w.t.Helper()
	var id string
	w.eventually("the rollback is recorded", func() bool {
		id = w.sql(`select id from agent_task where type = 'rollback' and result->>'offline' = 'true' order by created_at desc limit 1`)
		return id != ""
	})
	return w.row(id)
}

// offlineCommand is a line of what docs/operations.md says is to be typed.
func offlineCommand(t *testing.T, line int, replacements ...string) string {
	t.Helper()
	return strings.Split(testenv.Doc(t, "docs/operations.md", "While PostgreSQL is down", 0, replacements...), "\n")[line]
}

// Without the database, a Compose release that is kept on the host serves again,
// with the env that the operator brings; the database, the flags and the
// administrators hear of it later. The agent may be started meanwhile.
func TestOfflineRollbackOfCompose(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	proxy := w.severed()
	w.run()
	env := filepath.Join(w.dir, "one.env")
	if err := os.WriteFile(env, []byte("APP_VERSION=1.0.0\nTOKEN=canary-5511aa\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := testenv.AppImage(t, "image")
	app := compose(image, `environment: {APP_VERSION: "${APP_VERSION}", TOKEN: "${TOKEN}"}`)
	for _, version := range []string{"1.0.0", "1.1.0"} {
		app["README"] = version
		text := fmt.Sprintf("APP_VERSION=%s\nTOKEN=canary-5511aa\n", version)
		if r := w.deploy(w.release(version, app.tarball(t), text)); r.Status != "completed" {
			t.Fatalf("%s", r.Raw)
		}
	}
	w.mails(4)
	w.awaitClean()
	proxy.Refuse(true)

	if _, stderr, code := w.command("rollback", "--offline"); code != 2 || !strings.Contains(stderr, "give --env FILE with APP_VERSION, TOKEN") {
		t.Errorf("without an env: exit code %d, %s", code, stderr)
	}
	if _, stderr, code := w.command("rollback", "9.9.9", "--offline"); code != 1 || !strings.Contains(stderr, "release 9.9.9 is not kept in") || !strings.Contains(stderr, "1.0.0, 1.1.0") {
		t.Errorf("of an unknown release: exit code %d, %s", code, stderr)
	}
	w.stop()
	w.run() // starts without its database
	out := w.script(offlineCommand(t, 1, "1.4.2", "1.0.0", "prod.env", env))
	if !strings.Contains(out, "rollback of 1.0.0 completed") {
		t.Errorf("rollback says %s", out)
	}
	if got := w.get("/version"); got != "1.0.0" {
		t.Errorf("version %s serves", got)
	}
	if out := w.must("inspect"); !strings.Contains(out, "rollback of 1.0.0") || !strings.Contains(out, "without the database") {
		t.Errorf("inspect says %s", out)
	}

	proxy.Refuse(false)
	r := w.offlineRow()
	if r.Status != "completed" || r.Result["release_version"] != "1.0.0" || r.Picked == nil || r.Ended == nil {
		t.Errorf("the row is %s", r.Raw)
	}
	if got := w.flags(); got != "1.0.0|t|f|t\n1.1.0|f|t|t" {
		t.Errorf("flags are %q", got)
	}
	for _, s := range subjects(w.mails(6)[4:]) {
		if !strings.Contains(s, "ROLLBACK_SUCCESS") {
			t.Errorf("subject is %q", s)
		}
	}
	w.awaitClean()
	if err := os.Remove(env); err != nil {
		t.Fatal(err)
	}
	w.searchFor("canary-5511aa")
	if err := os.WriteFile(env, []byte("APP_VERSION=1.0.0\nTOKEN=canary-5511aa\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The release that was judged bad does not come back by itself, neither here
	// nor there.
	if _, stderr, code := w.command("rollback", "--offline", "--env", env); code != 1 || !strings.Contains(stderr, "no release to roll back to") {
		t.Errorf("a second one: exit code %d, %s", code, stderr)
	}
	if r := w.await(w.ask("rollback", "")); r.Status != "failed" || !strings.Contains(r.Error, "is what the last rollback left behind") {
		t.Errorf("a second one through the database: %s", r.Raw)
	}
}

// On Kubernetes, Helm's history is all that is needed.
func TestOfflineRollbackOfHelm(t *testing.T) {
	t.Parallel()
	w := newKubeWorld(t)
	proxy := w.severed()
	w.run()
	ids := map[string]string{}
	for _, version := range []string{"1.0.0", "1.1.0"} {
		ids[version] = w.push(version, chart(version, ""), "greeting: hello from "+version+"\n")
		w.completes(w.ask("deploy", ids[version]))
	}
	w.mails(4)
	w.awaitClean()
	proxy.Refuse(true)
	out := w.script(offlineCommand(t, 0))
	if !strings.Contains(out, "rollback of 1.0.0 completed") {
		t.Errorf("rollback says %s", out)
	}
	w.serves("1.0.0")
	if _, stderr, code := w.command("rollback", "--offline", "--wait"); code != 1 {
		t.Errorf("a second one: exit code %d, %s", code, stderr)
	}
	w.must("rollback", "1.1.0", "--offline", "--wait")
	w.serves("1.1.0")

	proxy.Refuse(false)
	w.eventually("all three are recorded", func() bool {
		return w.sql(`select count(*) from agent_task where type = 'rollback' and status in ('completed', 'failed')`) == "3"
	})
	if got := w.sql(`select status, release_artifact_id, result->>'release_version' from agent_task where type = 'rollback' order by created_at`); got != "completed|"+ids["1.0.0"]+"|1.0.0\nfailed||\ncompleted|"+ids["1.1.0"]+"|1.1.0" {
		t.Errorf("the rows are %q", got)
	}
	if got := w.flags(); got != "1.0.0|f|t|t\n1.1.0|t|f|t" {
		t.Errorf("flags are %q", got)
	}
	w.mails(10)
	w.awaitClean()
}
