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
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// served writes down what served on the desk's host, oldest first, and keeps
// the bundles of all but those that are named.
func (d *desk) served(history []deployment.Served, but ...string) {
	d.t.Helper()
	work := filepath.Join(d.dir, "work")
	for i := range history {
		s := &history[i]
		s.SHA256, s.ArtifactID = strings.Repeat(s.Version[:1], 64), "artifact of "+s.Version
		if strings.Contains(strings.Join(but, " "), s.Version) {
			continue
		}
		if err := os.MkdirAll(filepath.Join(work, deployment.ReleasesDir, s.Bundle()), 0o700); err != nil {
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
	if err := os.WriteFile(filepath.Join(work, deployment.HistoryFile), data, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func entry(kind task.Kind, version string, env ...string) deployment.Served {
	return deployment.Served{Kind: kind, Version: version, EnvNames: env}
}

// Which release an offline rollback goes back to.
func TestOfflineReleaseIsTheRightOne(t *testing.T) {
	const deploy, rollback = task.KindDeploy, task.KindRollback
	for _, c := range []struct {
		name    string
		history []deployment.Served
		gone    string // is not kept any more
		version string // that a person names
		want    string
		err     string
	}{
		{name: "the one before", history: []deployment.Served{entry(deploy, "1.0"), entry(deploy, "2.0")}, want: "1.0"},
		{name: "a second rollback in a row", history: []deployment.Served{entry(deploy, "0.9"), entry(deploy, "1.0"), entry(deploy, "2.0"), entry(rollback, "1.0")}, want: "0.9"},
		{
			name: "a second rollback with nothing before", history: []deployment.Served{entry(deploy, "1.0"), entry(deploy, "2.0"), entry(rollback, "1.0")},
			err: "no release to roll back to is kept in ",
		},
		{name: "the one before is not kept", history: []deployment.Served{entry(deploy, "0.9"), entry(deploy, "1.0"), entry(deploy, "2.0")}, gone: "1.0", want: "0.9"},
		{name: "a named one", history: []deployment.Served{entry(deploy, "0.9"), entry(deploy, "1.0"), entry(deploy, "2.0")}, version: "0.9", want: "0.9"},
		{name: "a named one that was left by a rollback", history: []deployment.Served{entry(deploy, "1.0"), entry(deploy, "2.0"), entry(rollback, "1.0")}, version: "2.0", want: "2.0"},
		{name: "a named one that is not kept", history: []deployment.Served{entry(deploy, "1.0"), entry(deploy, "2.0")}, gone: "1.0", version: "1.0", err: ": 2.0"},
		{name: "a named one that never served", history: []deployment.Served{entry(deploy, "1.0"), entry(deploy, "2.0")}, version: "3.0", err: ": 1.0, 2.0"},
		{name: "nothing ever served", err: "nothing is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &desk{t: t, dir: t.TempDir()}
			d.served(c.history, strings.Fields(c.gone)...)
			cfg, err := d.app(&output{}, &output{}).config()
			if err != nil {
				t.Fatal(err)
			}
			release, _, err := offlineRelease(cfg, c.version)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || release.Version != c.want || release.ArtifactID != "artifact of "+c.want || release.ChartType != task.ChartCompose {
				t.Errorf("it goes back to %+v, %v; want %s", release, err, c.want)
			}
		})
	}
	// The cluster's own records know what Helm goes back to.
	d := &desk{t: t, dir: t.TempDir()}
	cfg, err := d.app(&output{}, &output{}, "WRKTALK_AGENT_DEPLOYMENT_TYPE=kubernetes").config()
	if err != nil {
		t.Fatal(err)
	}
	if release, env, err := offlineRelease(cfg, ""); err != nil || release != (staging.Release{ChartType: task.ChartHelm}) || env != nil {
		t.Errorf("for Helm: %+v, %q, %v", release, env, err)
	}
}

func TestOfflineRollbackUsage(t *testing.T) {
	d := &desk{t: t, dir: t.TempDir()}
	d.served([]deployment.Served{entry(task.KindDeploy, "1.0", "COLOUR", "TOKEN"), entry(task.KindDeploy, "2.0")})
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
		var out, complaint output
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
	d := &desk{t: t, dir: t.TempDir()}
	d.served([]deployment.Served{entry(task.KindDeploy, "1.0"), entry(task.KindDeploy, "2.0")})
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
	d := &desk{t: t, dir: t.TempDir()}
	d.served([]deployment.Served{entry(task.KindDeploy, "1.0", "COLOUR"), entry(task.KindDeploy, "2.0")})
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
		d := newDesk(t)
		d.served([]deployment.Served{entry(task.KindDeploy, "1.0"), entry(task.KindDeploy, "2.0")})
		dir := d.openStaging(staging.Runner)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var out, complaint output
		a := d.app(&out, &complaint)
		ended := make(chan int, 1)
		go func() { ended <- a.main([]string{"rollback", "--offline", "--wait"}) }()
		out.await(ctx, t, "asked for on this host")
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
		if err := tasks[0].Take(); err != nil {
			t.Fatal(err)
		}
		if shredded {
			if err := d.db.Finish(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			err = tasks[0].Discard()
		} else {
			err = tasks[0].SetOutcome(o)
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
