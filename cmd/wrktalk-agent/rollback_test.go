package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// served writes down what served on the host, oldest first, and keeps
// the bundles.
func (d *operatorEnv) served(history ...protocol.HistoryEntry) {
	d.t.Helper()
	work := filepath.Join(d.dir, "work")
	for i := range history {
		s := &history[i]
		s.SHA256, s.ArtifactID = strings.Repeat(s.Version[:1], 64), "artifact of "+s.Version
		if err := os.MkdirAll(filepath.Join(work, protocol.BundlesDir, s.Bundle()), 0o700); err != nil {
			d.t.Fatal(err)
		}
	}
	data, err := json.Marshal(history)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, protocol.HistoryFile), data, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func entry(kind task.Kind, version string, env ...string) protocol.HistoryEntry {
	return protocol.HistoryEntry{Kind: kind, Version: version, EnvNames: env}
}

func TestOfflineRollbackUsage(t *testing.T) {
	d := &operatorEnv{t: t, dir: t.TempDir()}
	d.served(entry(task.KindDeploy, "1.0", "COLOUR", "TOKEN"), entry(task.KindDeploy, "2.0"))
	env := filepath.Join(d.dir, "prod.env")
	if err := os.WriteFile(env, []byte("export COLOUR=blue\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args, settings string
		code           int
		want           string
	}{
		{"--offline --at +5m", "", exitUsage, "--offline and --at exclude each other"},
		{"--env " + env, "", exitUsage, "--env goes with --offline"},
		{"--offline 1.0 2.0", "", exitUsage, "got 2 arguments"},
		{"--offline --env " + env, "WRKTALK_AGENT_DEPLOYMENT_TYPE=kubernetes", exitUsage, "--env is for Compose releases"},
		{"--offline", "", exitUsage, "release 1.0 was deployed with an env, which is kept in the database alone: give --env FILE with COLOUR, TOKEN"},
		{"--offline --env " + env + ".not", "", exitFailed, "no such file"},
		{"--offline --env " + env, "", exitFailed, "warning: " + env + " does not seem to set TOKEN, with which release 1.0 was deployed"},
		{"--offline 2.0", "", exitFailed, "no agent has run on this host"}, // no staging directory
	} {
		var out, complaint testenv.Output
		a := d.app(&out, &complaint, strings.Fields(c.settings)...)
		code := a.main(append([]string{"rollback"}, strings.Fields(c.args)...))
		if code != c.code || !strings.Contains(complaint.String(), c.want) {
			t.Errorf("rollback %s: exit code %d, %s; want %d, %q", c.args, code, complaint.String(), c.code, c.want)
		}
	}
}

// The runner takes only what belongs to its own user.
func TestOfflineRollbackLeavesAnotherUsersDirectoryAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a directory to another user")
	}
	d := &operatorEnv{t: t, dir: t.TempDir()}
	d.served(entry(task.KindDeploy, "1.0"), entry(task.KindDeploy, "2.0"))
	dir := d.openStaging(staging.Fetcher)
	if err := os.Chown(d.staging(), 4711, 4711); err != nil {
		t.Fatal(err)
	}
	_, complaint, code := d.run("rollback", "--offline")
	if code != exitFailed || !strings.Contains(complaint, "sudo -u '#4711'") {
		t.Errorf("exit code %d, %s", code, complaint)
	}
	if tasks, err := dir.List(staging.Ready); err != nil || len(tasks) > 0 {
		t.Errorf("%d tasks lie in ready, %v", len(tasks), err)
	}
}

// What lies in ready afterwards is what the runner accepts.
func TestOfflineRollbackIsReadyForTheRunner(t *testing.T) {
	d := &operatorEnv{t: t, dir: t.TempDir()}
	d.served(entry(task.KindDeploy, "1.0", "COLOUR"), entry(task.KindDeploy, "2.0"))
	env := filepath.Join(d.dir, "prod.env")
	if err := os.WriteFile(env, []byte("COLOUR=blue\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := d.openStaging(staging.Fetcher)
	out := d.must("rollback", "--offline", "--env", env)
	if !strings.Contains(out, "roll back to release 1.0 without the database") || !strings.Contains(out, "no runner is running here") {
		t.Errorf("it says %q", out)
	}
	tasks, err := dir.List(staging.Ready)
	if err != nil || len(tasks) != 1 {
		t.Fatalf("%d tasks lie in ready, %v", len(tasks), err)
	}
	m, err := tasks[0].Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if err := tasks[0].Verify(m); err != nil {
		t.Errorf("the runner would not take it: %v", err)
	}
	if !m.Offline || m.Kind != task.KindRollback || m.Release.Version != "1.0" || m.Token == "" || !strings.Contains(out, string(m.TaskID)) {
		t.Errorf("the manifest is %+v", m)
	}
	if data, err := os.ReadFile(tasks[0].Path(staging.EnvFile)); err != nil || string(data) != "COLOUR=blue\n" {
		t.Errorf("the env is %q, %v", data, err)
	}
	if left, err := dir.List(staging.Tmp); err != nil || len(left) > 0 {
		t.Errorf("%d drafts are left, %v", len(left), err)
	}
	var asked struct {
		ID      task.ID `json:"id"`
		Offline bool    `json:"offline"`
		Version string  `json:"release_version"`
	}
	if d.document(&asked, "rollback", "2.0", "--offline"); asked.ID == "" || !asked.Offline || asked.Version != "2.0" {
		t.Errorf("as a document: %+v", asked)
	}
}

// --wait ends with the outcome, or with what the database knows when the
// directory went before that was seen.
func TestOfflineRollbackIsFollowedToItsEnd(t *testing.T) {
	for _, shredded := range []bool{false, true} {
		d := newOperatorEnv(t)
		d.served(entry(task.KindDeploy, "1.0"), entry(task.KindDeploy, "2.0"))
		dir := d.openStaging(staging.Runner)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		var out, complaint testenv.Output
		a := d.app(&out, &complaint)
		ended := make(chan int, 1)
		go func() { ended <- a.main([]string{"rollback", "--offline", "--wait"}) }()
		out.Await(ctx, t, "asked for on this host")
		tasks, err := dir.List(staging.Ready)
		if err != nil || len(tasks) != 1 {
			t.Fatalf("%d tasks lie in ready, %v", len(tasks), err)
		}
		m, err := tasks[0].Manifest()
		if err != nil {
			t.Fatal(err)
		}
		o := task.Outcome{
			Schema: task.OutcomeSchema, TaskID: m.TaskID, Kind: m.Kind, Token: m.Token, Offline: true,
			Message: "The rollback failed", Error: "the engine is away", StartedAt: time.Now(), FinishedAt: time.Now(),
		}
		if err := tasks[0].Start(); err != nil {
			t.Fatal(err)
		}
		if shredded {
			if err := d.db.Finish(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			err = tasks[0].Remove()
		} else {
			err = tasks[0].SaveOutcome(o)
		}
		if err != nil {
			t.Fatal(err)
		}
		select {
		case code := <-ended:
			if code != exitFailed || !strings.Contains(out.String(), "the engine is away") {
				t.Errorf("exit code %d, %s%s", code, out.String(), complaint.String())
			}
		case <-ctx.Done():
			t.Fatalf("it does not end:\n%s", out.String())
		}
	}
}
