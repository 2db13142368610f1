package fetcher

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// A due row becomes a ready directory that verifies, and the fetcher takes
// nothing else while that lies there.
func TestRowBecomesReady(t *testing.T) {
	fx := newFixture(t)
	id := fx.addTask("deploy", fx.addRelease("1.0.0"))
	fx.start()
	dir, m := fx.awaitReady()
	if m.TaskID != id || m.Rejection != "" || m.Release.Version != "1.0.0" || m.Token == "" {
		t.Errorf("manifest is %+v", m)
	}
	if err := dir.Verify(m); err != nil {
		t.Error(err)
	}
	for name, text := range content {
		if got := fx.read(dir, "payload/"+name); got != text {
			t.Errorf("%s holds %q", name, got)
		}
	}
	if got := fx.read(dir, staging.EnvFile); got != "API_TOKEN=secret" {
		t.Errorf("the env holds %q", got)
	}
	second := fx.addTask("deploy", m.Release.ArtifactID)
	for range 2 { // two more looks, each of which is told to Run's caller
		fx.raw.SQL(t, `delete from deployment_config; insert into deployment_config (deployment_type) values ('docker')`)
		fx.stopAndWait()
		fx.start()
		fx.eventually("it looks", func() bool {
			return fx.raw.SQL(t, `select last_agent_poll is not null from deployment_config`) == "t"
		})
	}
	if got := fx.status(second); got != "pending" {
		t.Errorf("the second task is %s", got)
	}
}

// What cannot be staged is published as a rejection that says why, without
// anything of the release. Defects 5, 6, 7 and 10.
func TestDefects05To07Rejections(t *testing.T) {
	for _, c := range []struct {
		name, kind, want string
		artifact         func(fx *fixture) string
	}{
		{"unknown kind", "reboot", `task type "reboot" is not known`, func(fx *fixture) string { return fx.addRelease("1.0.0") }},
		{"no artifact", "deploy", "names no release artifact", func(*fixture) string { return "" }},
		{"nothing to go back to", "rollback", "no compose artifact is flagged is_previous", func(*fixture) string { return "" }},
		{"wrong digest", "deploy", "does not match its sha256", func(fx *fixture) string {
			return fx.addArtifact("1.0.0", "compose", testenv.Tarball(t, content), sum(nil))
		}},
		{"no digest", "deploy", "no usable sha256", func(fx *fixture) string {
			return fx.addArtifact("1.0.0", "compose", testenv.Tarball(t, content), "abc")
		}},
		{"traversal", "deploy", "../evil", func(fx *fixture) string {
			data := testenv.Tarball(t, map[string]string{"../evil": "x"})
			return fx.addArtifact("1.0.0", "compose", data, sum(data))
		}},
		{"too large", "deploy", "bytes", func(fx *fixture) string {
			data := testenv.Tarball(t, map[string]string{"big": strings.Repeat("x", 2<<20)})
			return fx.addArtifact("1.0.0", "compose", data, sum(data))
		}},
		{"env too large", "deploy", "its env_data holds 4194305 bytes", func(fx *fixture) string {
			id := fx.addRelease("1.0.0")
			fx.raw.SQL(fx.t, `update release_artifact set env_data = repeat('x', (4 << 20) + 1)`)
			return id
		}},
		{"values too large", "deploy", "its values_data holds 8388609 bytes", func(fx *fixture) string {
			id := fx.addRelease("1.0.0")
			fx.raw.SQL(fx.t, `update release_artifact set values_data = repeat('x', (8 << 20) + 1)`)
			return id
		}},
		// The list of a huge release takes minutes to make; a row can do the same.
		{"manifest too large", "deploy", "the document is too large", func(fx *fixture) string {
			id, serves := fx.addRelease("1.0.0"), fx.addRelease("0.9.0")
			fx.raw.SQL(fx.t, `alter table release_artifact alter sha256 type text;
				update release_artifact set is_current = true, sha256 = repeat('a', 65 << 20) where id = '`+serves+`'`)
			return id
		}},
		{"missing column", "deploy", "staging failed: read artifact", func(fx *fixture) string {
			id := fx.addRelease("1.0.0")
			fx.raw.SQL(fx.t, `alter table release_artifact drop column values_data`)
			return id
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fx := newFixture(t)
			id := fx.addTask(c.kind, c.artifact(fx))
			fx.start()
			dir, m := fx.awaitReady()
			if m.TaskID != id || !strings.Contains(m.Rejection, c.want) || strings.Contains(m.Rejection, "\n") || len(m.Files) != 0 {
				t.Errorf("manifest is %+v, want a rejection with %q", m, c.want)
			}
			for _, name := range []string{staging.PayloadDir, staging.EnvFile} {
				if _, err := os.Lstat(dir.Path(name)); err == nil {
					t.Errorf("%s was left", name)
				}
			}
		})
	}
}

// A rollback that names no release is handed over without one where the flags name none
// either, if the deployment target has records of its own; one that they name is staged,
// and what is deployed decides.
func TestUnnamedRollback(t *testing.T) {
	for _, flagged := range []bool{false, true} {
		fx := newFixture(t)
		fx.opts.Target = taskdb.Target{Deployment: task.DeploymentKubernetes, Name: "app"}
		data := testenv.Tarball(t, map[string]string{"Chart.yaml": "name: app\n"})
		current, previous := fx.addArtifact("2.0.0", "helm", data, sum(data)), ""
		fx.raw.SQL(t, `update release_artifact set is_current = true, applied_at = now()`)
		if flagged {
			previous = fx.addArtifact("1.0.0", "helm", data, sum(data))
			fx.raw.SQL(t, `update release_artifact set is_previous = true where id = '`+previous+`'`)
		}
		fx.addTask("rollback", "")
		fx.start()
		dir, m := fx.awaitReady()
		_, err := os.Lstat(dir.Path(staging.PayloadDir))
		if !m.Unnamed || m.Rejection != "" || m.Release.ArtifactID != previous || m.Release.ChartType != task.ChartHelm || (err == nil) != flagged {
			t.Errorf("manifest is %+v; payload: %v", m, err)
		}
		if m.Previous == nil || m.Previous.ArtifactID != current {
			t.Errorf("serving is %+v", m.Previous)
		}
		fx.stopAndWait()
	}
}

// Stop with nothing to do ends the fetcher at once, whatever its timers say.
func TestDefect16IdleFetcherStopsAtOnce(t *testing.T) {
	fx := newFixture(t) // polls every hour
	fx.start()
	fx.eventually("it has looked", func() bool { fx.mu.Lock(); defer fx.mu.Unlock(); return fx.log.Len() > 0 })
	fx.stopAndWait()
}

// leaveDraft leaves what a fetcher leaves that is killed in the middle of staging.
func (fx *fixture) leaveDraft(change func(*staging.Manifest)) string {
	fx.t.Helper()
	fx.open()
	var d *staging.Draft
	c, err := fx.db.Claim(fx.t.Context(), fx.opts.Target, taskdb.ClaimOptions{
		Lease: time.Hour, Claim: true,
		Record: func(t taskdb.Task) (err error) {
			m := manifestOf(t)
			change(&m)
			if d, err = fx.dir.Create(staging.Name(m.ClaimedAt, m.Kind, t.Version, m.TaskID)); err != nil {
				return err
			}
			return d.SaveManifest(m)
		},
	})
	if err != nil || c.Task == nil {
		fx.t.Fatalf("claim returns %+v, %v", c, err)
	}
	for _, err := range []error{
		d.Root().Mkdir(staging.PayloadDir, 0o700),
		d.Root().WriteFile("payload/half", []byte("half a file"), 0o600),
		d.Root().WriteFile(staging.EnvFile, []byte("API_TOKEN=stale"), 0o600),
		d.Close(), // as the end of its fetcher does
	} {
		if err != nil {
			fx.t.Fatal(err)
		}
	}
	name := d.Task().Name
	fx.stopAndWait()
	return name
}

// A draft whose claim holds is staged anew under its token, from nothing: not
// with what the predecessor had found or refused.
func TestADraftIsResumed(t *testing.T) {
	fx := newFixture(t)
	id := fx.addTask("deploy", fx.addRelease("1.0.0"))
	var token string
	fx.leaveDraft(func(m *staging.Manifest) {
		token = string(m.Token)
		m.Rejection, m.PreviousStaged = "no space left on device", true
		m.Previous = &staging.Release{Version: "0.9.0"}
	})
	fx.start()
	dir, m := fx.awaitReady()
	if m.TaskID != id || string(m.Token) != token || m.Rejection != "" || m.PreviousStaged || m.Previous != nil {
		t.Errorf("manifest is %+v", m)
	}
	if err := dir.Verify(m); err != nil {
		t.Error(err)
	}
}

// What serves now and cannot be staged with all its env is not offered to go
// back to, and hinders no new release.
func TestAnUnusablePreviousRelease(t *testing.T) {
	fx := newFixture(t)
	fx.opts.Kept = func(string, string) bool { return true }
	serves := fx.addRelease("0.9.0")
	fx.raw.SQL(t, `update release_artifact set is_current = true, env_data = repeat('x', (4 << 20) + 1) where id = '`+serves+`'`)
	fx.addTask("deploy", fx.addRelease("1.0.0"))
	fx.start()
	dir, m := fx.awaitReady()
	if m.Rejection != "" || m.Previous != nil || m.PreviousStaged {
		t.Errorf("manifest is %+v", m)
	}
	if err := dir.Verify(m); err != nil {
		t.Error(err)
	}
}

// A task that killed its fetcher as often as it may is refused, not staged
// again.
func TestStagingIsNotBegunForEver(t *testing.T) {
	for starts, want := range map[int]string{2: "", 3: "staging began 3 times"} {
		fx := newFixture(t)
		fx.opts.MaxAttempts = 3
		fx.addTask("deploy", fx.addRelease("1.0.0"))
		fx.leaveDraft(func(m *staging.Manifest) { m.StageAttempts = starts })
		fx.start()
		_, m := fx.awaitReady()
		if (m.Rejection == "") != (want == "") || !strings.Contains(m.Rejection, want) || m.StageAttempts != starts+1 {
			t.Errorf("after %d starts the manifest is %+v", starts, m)
		}
		fx.stopAndWait()
	}
}

// A start is counted before anything can go wrong with it, and forgotten when
// the agent was only stopped.
func TestAStopIsNoAttempt(t *testing.T) {
	fx := newFixture(t)
	fx.opts.MaxAttempts = 1
	fx.addTask("deploy", fx.addRelease("1.0.0"))
	fx.proxy.LoseReplyTo("substring", 1<<20) // so that staging is tried again and again
	for range 3 {
		fx.start()
		fx.eventually("it stages", func() bool {
			tasks := fx.list(staging.Tmp)
			if len(tasks) == 0 {
				return false
			}
			m, err := tasks[0].Manifest()
			return err == nil && m.StageAttempts == 1 && fx.proxy.Lost() > 0
		})
		fx.stopAndWait()
		m, err := fx.list(staging.Tmp)[0].Manifest()
		if err != nil || m.StageAttempts != 0 {
			t.Fatalf("the draft says %+v, %v", m, err)
		}
		fx.proxy.LoseReplyTo("substring", 1<<20)
	}
	fx.proxy.LoseReplyTo("substring", 0)
	fx.start()
	if _, m := fx.awaitReady(); m.Rejection != "" {
		t.Errorf("refused: %s", m.Rejection)
	}
}

// A migration of the database is noticed without a restart, at the next poll.
func TestNotifyIsTurnedOnByAMigration(t *testing.T) {
	fx := newFixture(t)
	fx.opts.Poll, fx.listenRetry = 50*time.Millisecond, time.Hour
	fx.start()
	fx.eventually("it polls", func() bool {
		fx.mu.Lock()
		defer fx.mu.Unlock()
		return fx.said && strings.Contains(fx.log.String(), "found by polling")
	})
	if err := fx.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	fx.eventually("it listens", func() bool {
		return fx.raw.SQL(t, "select count(*) from pg_stat_activity where datname = current_database() and query = 'listen wrktalk_agent_task'") == "1"
	})
	id := fx.addTask("deploy", fx.addRelease("1.0.0"))
	if _, m := fx.awaitReady(); m.TaskID != id {
		t.Errorf("manifest is %+v", m)
	}
	fx.mu.Lock()
	defer fx.mu.Unlock()
	if n := strings.Count(fx.log.String(), "found by polling"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
}

// A draft whose claim was lost, and one that nobody can read, are shredded.
func TestADraftIsRemoved(t *testing.T) {
	for name, spoil := range map[string]func(fx *fixture, dir string){
		"claim lost": func(fx *fixture, _ string) {
			fx.raw.SQL(t, `update agent_task set picked_up_at = now(), last_heartbeat = now() + interval '1 hour'`)
		},
		"unreadable": func(fx *fixture, dir string) {
			if err := os.WriteFile(dir+"/manifest.json", []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"no claim": func(fx *fixture, dir string) {
			if err := os.Remove(dir + "/manifest.json"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			fx := newFixture(t)
			fx.addTask("deploy", fx.addRelease("1.0.0"))
			draft := fx.leaveDraft(func(*staging.Manifest) {})
			spoil(fx, fx.staging+"/tmp/"+draft)
			fx.start()
			fx.eventually("the draft is gone", func() bool { return len(fx.list(staging.Tmp)) == 0 })
			if got := fx.list(staging.Ready); len(got) != 0 {
				t.Errorf("%s was staged", got[0].Name)
			}
		})
	}
}

// A claim whose commit got no reply, while the database then was away, is not
// left to its lease: it is staged once the database says that it holds.
func TestAClaimOfUnknownEndIsKept(t *testing.T) {
	fx := newFixture(t)
	fx.useOneConnection() // so that no other one can ask
	id := fx.addTask("deploy", fx.addRelease("1.0.0"))
	// The commit itself closes the database to new connections.
	fx.raw.SQL(t, `create function close_down() returns trigger language plpgsql as
			'begin update pg_database set datallowconn = false where datname = current_database(); return null; end';
		create constraint trigger close_down after update on agent_task deferrable initially deferred
			for each row execute function close_down()`)
	fx.proxy.LoseReplyTo("commit", 1)
	fx.start()
	fx.eventually("the fetcher gives up looking for the answer", func() bool {
		fx.mu.Lock()
		defer fx.mu.Unlock()
		return strings.Contains(fx.log.String(), "cannot be confirmed")
	})
	if got := fx.list(staging.Tmp); len(got) != 1 {
		t.Fatalf("%d drafts are left, want 1", len(got))
	}
	fx.eventually("the fetcher says that it is not ready", func() bool {
		fx.mu.Lock()
		defer fx.mu.Unlock()
		return fx.reason != ""
	})
	for _, c := range []struct{ db, sql string }{
		{"postgres", fmt.Sprintf(`update pg_database set datallowconn = true where datname = '%s'`, fx.raw.Name)},
		{fx.raw.Name, `drop trigger close_down on agent_task; update pg_database set datallowconn = true where datname = current_database()`},
	} {
		fx.eventually("the database is open again", func() bool {
			_, err := fx.raw.Server.SQL(c.db, c.sql)
			return err == nil
		})
	}
	_, m := fx.awaitReady()
	if m.TaskID != id || fx.status(id) != "inProgress" {
		t.Errorf("manifest is %+v, the task is %s", m, fx.status(id))
	}
}

// A stop while the database is away leaves the draft to the next start, which
// takes it up.
func TestStopWhileStaging(t *testing.T) {
	fx := newFixture(t)
	id := fx.addTask("deploy", fx.addRelease("1.0.0"))
	fx.leaveDraft(func(*staging.Manifest) {})
	fx.proxy.Refuse(true)
	fx.start()
	fx.eventually("it says what is wrong", func() bool { fx.mu.Lock(); defer fx.mu.Unlock(); return fx.reason != "" })
	fx.stopAndWait()
	if got := fx.list(staging.Tmp); len(got) != 1 {
		t.Fatalf("%d drafts are left, want 1", len(got))
	}
	fx.proxy.Refuse(false)
	fx.start()
	if _, m := fx.awaitReady(); m.TaskID != id {
		t.Errorf("manifest is %+v", m)
	}
}

// A claim that is lost while its release is staged ends the staging, and
// nothing of it stays.
func TestLostWhileStaging(t *testing.T) {
	fx := newFixture(t)
	fx.opts.Heartbeat = 50 * time.Millisecond
	id := fx.addTask("deploy", fx.addRelease("1.0.0"))
	fx.proxy.LoseReplyTo("substring", 1<<20) // so that staging is tried again and again
	fx.start()
	fx.eventually("it is claimed", func() bool { return fx.status(id) == "inProgress" })
	fx.raw.SQL(t, fmt.Sprintf(`update agent_task set status = 'failed' where id = '%s'`, id))
	fx.eventually("the draft is gone", func() bool { return len(fx.list(staging.Tmp)) == 0 })
	if got := fx.list(staging.Ready); len(got) != 0 {
		t.Errorf("%s was staged", got[0].Name)
	}
}

func TestBackoff(t *testing.T) {
	f := &Fetcher{Options: Options{Poll: time.Hour}}
	for n := 1; n < 100; n++ {
		if got := f.retryPolicy().Delay(n); got <= 0 || got > 30*time.Second {
			t.Errorf("backoff %d is %s", n, got)
		}
	}
}
