package e2e

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// flags returns version, is_current, is_previous and whether applied_at is set.
func (w *world) flags() string {
	w.t.Helper()
	return w.sql(`select release_version, is_current, is_previous, applied_at is not null from release_artifact order by release_version`)
}

func subjects(mails []testenv.Mail) []string {
	var out []string
	for _, m := range mails {
		for line := range strings.Lines(string(m.Raw)) {
			if s, ok := strings.CutPrefix(line, "Subject: "); ok {
				out = append(out, strings.TrimSpace(s))
			}
		}
	}
	return out
}

// A dump with one pending task, the reference's variables: running containers,
// a completed row, the flags, the mails, and nothing left in staging. Defects 1
// (Compose deploys always fail), 2 (heartbeats never land), 21 (the env stays in
// the working directory), 26 and 17 (a password with @).
func TestDefect01ComposeReleaseGoesFromRowToMail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	image := testenv.AppImage(t, "1.0.0")
	b := compose("${IMAGE}", "env_file: .env", "volumes: ['./site:/site:ro']", "environment:", "  GREETING: ${GREETING}")
	b["site/motd.txt"] = "mounted from the bundle"
	artifact := w.release("1.0.0", b.tarball(t), "IMAGE="+image+"\nGREETING=hello\nAPI_TOKEN=canary-7f3a91\n")
	id := w.ask("deploy", artifact)
	w.run()

	r := w.await(id)
	if r.Status != "completed" {
		t.Fatalf("task is %s", r.Raw)
	}
	if r.Result["status"] != "success" || r.Result["release_version"] != "1.0.0" || r.Result["message"] == "" {
		t.Errorf("result is %v", r.Result)
	}
	if r.Error != "" || r.Picked == nil || r.Ended == nil || r.Beat == nil {
		t.Errorf("row is %s", r.Raw)
	}
	if got := w.flags(); got != "1.0.0|t|f|t" {
		t.Errorf("flags are %s", got)
	}
	if got := w.sql(`select last_agent_poll is not null from deployment_config`); got != "t" {
		t.Error("last_agent_poll is not set")
	}
	for path, want := range map[string]string{
		"/": "1.0.0", "/env?name=GREETING": "hello", "/env?name=API_TOKEN": "canary-7f3a91", "/file?path=/site/motd.txt": "mounted from the bundle",
	} {
		if got := w.get(path); got != want {
			t.Errorf("%s answers %q, want %q", path, got, want)
		}
	}
	mails := w.mails(2)
	var to []string
	for _, m := range mails {
		to = append(to, m.To...)
	}
	slices.Sort(to)
	if !slices.Equal(to, []string{"ada@wrktalk.example", "grace@wrktalk.example"}) {
		t.Errorf("mails went to %v", to)
	}
	for _, s := range subjects(mails) {
		if !strings.Contains(s, "SUCCESS") || !strings.Contains(s, "1.0.0") {
			t.Errorf("subject is %q", s)
		}
	}
	w.awaitClean()

	// The bundle outlives the run, its env does not, and a restart finds the file.
	testenv.DockerOutput(t, append([]string{"restart", "-t", "1"}, w.containers()...)...)
	if got := w.get("/file?path=/site/motd.txt"); got != "mounted from the bundle" {
		t.Errorf("after a restart the mounted file holds %q", got)
	}
	w.searchFor("canary-7f3a91")
}

// searchFor fails when a secret lies anywhere it must not.
func (w *world) searchFor(secret string) {
	w.t.Helper()
	for _, path := range files(w.t, w.dir) {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // a directory that went away meanwhile
		}
		if strings.Contains(string(data), secret) {
			w.t.Errorf("%s holds the secret", path)
		}
	}
	if strings.Contains(w.logged(), secret) {
		w.t.Error("the log holds the secret")
	}
	if got := w.sql(`select count(*) from agent_task where position(%s in concat(result::text, error_message)) > 0`, quote(secret)); got != "0" {
		w.t.Error("a task's row holds the secret")
	}
	for _, m := range w.smtp.Mails() {
		if strings.Contains(string(m.Raw), secret) {
			w.t.Error("a mail holds the secret")
		}
	}
}

// Each way to fail: status failed, one clear sentence, one mail per active
// administrator, an empty staging directory, and nothing running. Defects 5
// (path traversal), 6 (sha256 never checked) and 7 (unknown task type).
func TestDefects05To07FailuresSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	image := testenv.AppImage(t, "1.0.0")
	good := compose(image)
	for _, c := range []struct {
		name, kind, want string
		artifact         func(w *world) string
	}{
		{"corrupt artifact", "deploy", "not a gzip'd tar", func(w *world) string {
			return w.release("9.9.9", []byte("this is no archive"), "")
		}},
		{"cut artifact", "deploy", "refused", func(w *world) string {
			data := good.tarball(t)
			return w.release("9.9.9", data[:len(data)/2], "")
		}},
		{"wrong digest", "deploy", "does not match its sha256", func(w *world) string {
			return w.artifact("9.9.9", good.tarball(t), hex.EncodeToString(make([]byte, 32)), "")
		}},
		{"path traversal", "deploy", "../evil", func(w *world) string {
			return w.release("9.9.9", bundle{"docker-compose.yaml": "services: {}", "../evil": "x"}.tarball(t), "")
		}},
		{"no compose file", "deploy", "docker-compose.yaml", func(w *world) string {
			return w.release("9.9.9", bundle{"readme.txt": "nothing here"}.tarball(t), "")
		}},
		{"broken compose file", "deploy", "parse compose.yaml", func(w *world) string {
			return w.release("9.9.9", bundle{"compose.yaml": "services: [oops"}.tarball(t), "")
		}},
		{"missing image", "deploy", "127.0.0.1:9/none:1", func(w *world) string { // where no registry listens
			return w.release("9.9.9", compose("127.0.0.1:9/none:1").tarball(t), "")
		}},
		{"unknown task type", "reboot", `task type "reboot" is not known`, func(w *world) string {
			return w.release("9.9.9", good.tarball(t), "")
		}},
		{"no artifact", "deploy", "names no release artifact", func(*world) string { return "" }},
		{"nothing to roll back to", "rollback", "no compose artifact is flagged is_previous", func(*world) string { return "" }},
		{"application that dies", "deploy", "exit", func(w *world) string {
			return w.release("9.9.9", compose(image, "environment: {APP_MODE: crash, APP_LAST_WORDS: no-database}").tarball(t), "")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.ask(c.kind, c.artifact(w))
			w.run()
			r := w.await(id)
			if r.Status != "failed" || r.Result["status"] != "failed" {
				t.Fatalf("task is %s", r.Raw)
			}
			if !strings.Contains(r.Error, c.want) || strings.Contains(r.Error, "\n") {
				t.Errorf("error is %q, want one line with %q", r.Error, c.want)
			}
			notice := "FAILED"
			if c.kind == "rollback" {
				notice = "ROLLBACK_FAILED"
			}
			for _, s := range subjects(w.mails(2)) {
				if !strings.Contains(s, notice) {
					t.Errorf("subject is %q", s)
				}
			}
			w.awaitClean()
			if got := w.containers(); len(got) != 0 {
				t.Errorf("containers are left: %v", got)
			}
			if got := w.sql(`select count(*) from release_artifact where is_current or is_previous or applied_at is not null`); got != "0" {
				t.Errorf("a failed release has flags: %s", w.flags())
			}
		})
	}
}

// A release that does not come up is replaced by the one that served before,
// whose env comes from its row. Defects 11, 12 and 21.
func TestDefect21FailedReleaseIsReplacedByTheOneBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	image := testenv.AppImage(t, "1.0.0")
	sick := testenv.AppImage(t, "1.1.0")
	w.run()
	first := w.release("1.0.0", compose(image, "environment: {GREETING: '${GREETING}'}").tarball(t), "GREETING=first\n")
	if r := w.deploy(first); r.Status != "completed" {
		t.Fatalf("first: %s", r.Raw)
	}
	second := w.release("1.1.0", compose(sick, "environment: {GREETING: '${GREETING}', APP_MODE: sick}").tarball(t), "GREETING=second\n")
	r := w.deploy(second)
	if r.Status != "failed" || r.Result["restored"] != true || r.Result["serving_version"] != "1.0.0" {
		t.Fatalf("second: %s", r.Raw)
	}
	if !strings.Contains(r.Error, "web") {
		t.Errorf("error names no service: %q", r.Error)
	}
	if got := w.get("/"); got != "1.0.0" {
		t.Errorf("%s serves after the restore", got)
	}
	if got := w.get("/env?name=GREETING"); got != "first" {
		t.Errorf("the restored release greets with %q", got)
	}
	if got := w.flags(); got != "1.0.0|t|f|t\n1.1.0|f|f|f" {
		t.Errorf("flags are %q", got)
	}
	w.mails(4)
	w.awaitClean()
}

// Upgrade, rollback and redeployment move the flags. Defects 3, 11 and 12.
func TestDefects11And12FlagsFollowWhatServes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run()
	releases := map[string]string{}
	for _, v := range []string{"1.0.0", "1.1.0"} {
		image := testenv.AppImage(t, v)
		releases[v] = w.release(v, compose(image).tarball(t), "")
		if r := w.deploy(releases[v]); r.Status != "completed" {
			t.Fatalf("%s: %s", v, r.Raw)
		}
	}
	step := func(name, id, serves, flags string) {
		t.Helper()
		if r := w.await(id); r.Status != "completed" {
			t.Fatalf("%s: %s", name, r.Raw)
		}
		if got := w.get("/"); got != serves {
			t.Errorf("%s: %s serves, want %s", name, got, serves)
		}
		if got := w.flags(); got != flags {
			t.Errorf("%s: flags are %q, want %q", name, got, flags)
		}
	}
	step("redeploy the current one", w.ask("deploy", releases["1.1.0"]), "1.1.0", "1.0.0|f|t|t\n1.1.0|t|f|t")
	step("roll back", w.ask("rollback", ""), "1.0.0", "1.0.0|t|f|t\n1.1.0|f|t|t")
	step("deploy again", w.ask("deploy", releases["1.1.0"]), "1.1.0", "1.0.0|f|t|t\n1.1.0|t|f|t")
	subjects := subjects(w.mails(10))
	if n := len(slices.DeleteFunc(subjects, func(s string) bool { return !strings.Contains(s, "ROLLBACK_SUCCESS") })); n != 2 {
		t.Errorf("%d mails say ROLLBACK_SUCCESS, want 2", n)
	}
	w.awaitClean()
}

// Nothing of the agent's environment can be interpolated into a bundle.
func TestAgentEnvironmentStaysOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "CANARY_OF_THE_AGENT=leaked")
	image := testenv.AppImage(t, "1.0.0")
	b := compose(image, "environment:",
		"  STOLEN: ${WRKTALK_AGENT_DB_PASSWORD-nothing}", "  OTHER: ${CANARY_OF_THE_AGENT-nothing}", "  HOME_OF: ${HOME-nothing}",
		"  WRKTALK_AGENT_DB_PASSWORD:")
	w.run()
	if r := w.deploy(w.release("1.0.0", b.tarball(t), "")); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	for _, name := range []string{"STOLEN", "OTHER", "HOME_OF"} {
		if got := w.get("/env?name=" + name); got != "nothing" {
			t.Errorf("%s is %q", name, got)
		}
	}
	if got := w.get("/env?name=WRKTALK_AGENT_DB_PASSWORD"); got != "" {
		t.Errorf("the database's password came through: %q", got)
	}
	w.searchFor(dbPassword)
}

// A Kubernetes agent leaves Compose tasks alone. Defect 10.
func TestDefect10KubernetesAgentLeavesComposeAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	image := testenv.AppImage(t, "1.0.0")
	id := w.ask("deploy", w.release("1.0.0", compose(image).tarball(t), ""))
	w.run("WRKTALK_AGENT_DEPLOYMENT_TYPE=kubernetes")
	w.eventually("the agent has polled twice", func() bool {
		return w.sql(`update deployment_config set last_agent_poll = null where last_agent_poll is not null returning 1`) == "1"
	})
	w.eventually("the agent has polled again", func() bool {
		return w.sql(`select last_agent_poll is not null from deployment_config`) == "t"
	})
	if r := w.row(id); r.Status != "pending" {
		t.Errorf("task is %s", r.Raw)
	}
}

// With the agent's schema a task is announced: it is found although polling
// would take an hour.
func TestNotifyFindsATaskWithoutPolling(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "WRKTALK_AGENT_POLL_INTERVAL=1h", "WRKTALK_AGENT_LEASE=2h")
	if _, stderr, code := w.command("migrate"); code != 0 {
		t.Fatal(stderr)
	}
	image := testenv.AppImage(t, "1.0.0")
	w.run()
	w.eventually("the agent listens", func() bool {
		return w.sql(`select count(*) from pg_stat_activity where datname = current_database() and query ilike 'listen %%'`) == "1"
	})
	if r := w.deploy(w.release("1.0.0", compose(image).tarball(t), "")); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	w.mails(2)
}

// The operator's commands do the same as the backend's rows.
func TestCommandsFromPushToStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	image := testenv.AppImage(t, "2.0.0")
	dir := filepath.Join(w.dir, "release")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"release/compose.yaml": compose("${IMAGE}")["docker-compose.yaml"], "env": "IMAGE=" + image + "\n",
	} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(args ...string) string {
		t.Helper()
		out, stderr, code := w.command(args...)
		if code != 0 {
			t.Fatalf("%v: exit code %d\n%s%s", args, code, out, stderr)
		}
		return out
	}
	must("push", dir, "--version", "2.0.0", "--env", filepath.Join(w.dir, "env"))
	w.run()
	out := must("deploy", "2.0.0", "--wait")
	for _, want := range []string{"staging", "ready", "deploy of 2.0.0 completed"} {
		if !strings.Contains(out, want) {
			t.Errorf("deploy --wait does not say %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("escape sequences where there is no terminal:\n%q", out)
	}
	if out := must("status"); !strings.Contains(out, "2.0.0 since") {
		t.Errorf("status:\n%s", out)
	}
	if out := must("status", "--output", "json"); !strings.Contains(out, `"release_version": "2.0.0"`) {
		t.Errorf("status:\n%s", out)
	}
	if out := must("config"); strings.Contains(out, dbPassword) || !strings.Contains(out, "[redacted]") {
		t.Errorf("config:\n%s", out)
	}
	if out := must("rollback", "2.0.0", "--wait"); !strings.Contains(out, "rollback of 2.0.0 completed") {
		t.Errorf("rollback --wait:\n%s", out)
	}
	if _, stderr, code := w.command("deploy", "3.0.0"); code != 1 || !strings.Contains(stderr, "wrktalk-agent push") {
		t.Errorf("a release that is not there: exit code %d, %s", code, stderr)
	}
	if _, stderr, code := w.command("deploy"); code != 2 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("wrong usage: exit code %d, %s", code, stderr)
	}
	out, _, code := w.command("check")
	if code != 0 || strings.Contains(out, "failed") {
		t.Errorf("check: exit code %d\n%s", code, out)
	}
}
