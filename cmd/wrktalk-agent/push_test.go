package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is stored can be deployed, and a version means one release.
func TestPush(t *testing.T) {
	t.Parallel()
	d := newOperatorEnv(t)
	dir := filepath.Join(d.dir, "release")
	write := func(name, content string) string {
		t.Helper()
		full := filepath.Join(d.dir, name)
		err := os.MkdirAll(filepath.Dir(full), 0o755)
		if err == nil {
			err = os.WriteFile(full, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		return full
	}
	write("release/compose.yaml", "services: {app: {image: app}}\n")
	write("release/.git/config", "")
	env := write("env", "A=b\n")
	empty := filepath.Join(d.dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		args []string
		code int
		says string
		rows string
	}{
		{[]string{dir, "--version", "../../etc"}, exitUsage, `"../../etc" is no version`, "0"},
		{[]string{dir}, exitUsage, "--version is missing", "0"},
		{[]string{"", "--version", "1.0.0"}, exitUsage, "an argument is empty", "0"},
		{[]string{filepath.Join(d.dir, "none"), "--version", "1.0.0"}, exitFailed, "no such file", "0"},
		{[]string{empty, "--version", "1.0.0"}, exitFailed, "empty was not stored: the agent would refuse it: artifact holds no entries", "0"},
		{[]string{write("two", "ab"), "--version", "1.0.0"}, exitFailed, "artifact is plain text, not a gzip'd tar archive", "0"},
		{[]string{dir, "--version", "1.0.0", "--env", d.dir}, exitFailed, "read --env: ", "0"},
		{[]string{dir, "--version", "1.0.0"}, exitDone, ".git was left out", "1"},
		{[]string{dir, "--version", "1.0.0"}, exitDone, "release 1.0.0 exists already with the same content", "1"},
		{[]string{dir, "--version", "1.0.0", "--env", env}, exitDone, "version 1.0.0 exists already with other content (artifact ", "2"},
		{[]string{write("docker-compose.prod.yml", "services: {app: {image: app}}\n"), "--version", "1.1.0"}, exitDone, "docker-compose.prod.yml is stored as compose.yaml", "3"},
	} {
		out, complaint, code := d.run(append([]string{"push"}, step.args...)...)
		if code != step.code || !strings.Contains(out+complaint, step.says) {
			t.Errorf("push %q: exit code %d, %s%s; want %d and %q", step.args, code, out, complaint, step.code, step.says)
		}
		if rows := d.raw.SQL(t, `select count(*) from release_artifact`); rows != step.rows {
			t.Errorf("push %q: %s rows, want %s", step.args, rows, step.rows)
		}
	}
}

// A task is asked for only if it can come to something, and only what was meant.
func TestWhatIsAskedForIsChecked(t *testing.T) {
	t.Parallel()
	d := newOperatorEnv(t)
	ask := func(code int, says string, args ...string) {
		t.Helper()
		before := d.raw.SQL(t, `select count(*) from agent_task`)
		_, complaint, got := d.run(args...)
		if got != code || !strings.Contains(complaint, says) || strings.Count(complaint, "\n") != 1 {
			t.Errorf("%q: exit code %d, %s; want %d and %q", args, got, complaint, code, says)
		}
		if after := d.raw.SQL(t, `select count(*) from agent_task`); after != before {
			t.Errorf("%q: a task was added", args)
		}
	}
	ask(exitFailed, `no compose release of version "1.0.0", and no other one: store it with wrktalk-agent push`, "deploy", "1.0.0")
	ask(exitFailed, "no compose release serves yet", "rollback")
	d.artifact("compose", "1.0.0")
	d.artifact("helm", "2.0.0")
	ask(exitFailed, "did you mean 1.0.0?", "deploy", "1.0.1")
	ask(exitFailed, "the newest is 1.0.0", "rollback", "nightly")
	ask(exitUsage, "an argument is empty", "deploy", "")
	ask(exitUsage, "an argument is empty", "rollback", " ")
	ask(exitUsage, "an argument is empty", "cancel", "")
	ask(exitUsage, "--at 2020-01-01 10:00:00", "deploy", "1.0.0", "--at", "2020-01-01 10:00")
	ask(exitUsage, "is no time", "rollback", "--at", "yesterday")
	d.raw.SQL(t, `update release_artifact set is_current = true, applied_at = now() where chart_type = 'compose'`)
	ask(exitFailed, "1.0.0 is the first that serves", "rollback")
	ask(exitUsage, `there is no command "nope"`, "help", "nope")
	ask(exitFailed, `there is no task "1234-5678": wrktalk-agent status`, "cancel", "1234-5678")
	d.must("deploy", "1.0.0", "--at", "+1h")
	d.must("rollback") // what waits may be another release
}
