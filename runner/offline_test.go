package runner

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// offline puts a rollback to a kept release into ready, as the operator's
// command does, and returns its id and the name of its directory.
func (b *fixture) offline(artifact string) (task.ID, string) {
	b.t.Helper()
	now := time.Now().UTC().Truncate(time.Microsecond)
	sum := sha256.Sum256([]byte(envText))
	m := staging.Manifest{
		TaskID: taskdb.NewTaskID(), Kind: task.KindRollback, Offline: true, Token: task.Token(now.Format(time.RFC3339Nano)),
		Release: staging.Release{ArtifactID: artifact, Version: "0.9.0", ChartType: task.ChartCompose, SHA256: "y"},
		DueAt:   now, ClaimedAt: now, StagedAt: now,
		Files: []staging.File{{Path: staging.EnvFile, Type: staging.TypeFile, Mode: 0o600, Size: int64(len(envText)), SHA256: hex.EncodeToString(sum[:])}},
	}
	d, err := b.fetcher.Create(staging.Name(now, m.Kind, m.Release.Version, m.TaskID))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := d.Root().WriteFile(staging.EnvFile, []byte(envText), 0o600); err != nil {
		b.t.Fatal(err)
	}
	t, err := d.Publish(m)
	if err != nil {
		b.t.Fatal(err)
	}
	return m.TaskID, t.Name
}

// old adds the artifact that a rollback goes back to.
func (b *fixture) old() string {
	b.t.Helper()
	return b.raw.SQL(b.t, `insert into release_artifact (id, release_version, chart_type, artifact_data, sha256, is_previous, applied_at)
		values ('00000000-0000-4000-8000-000000000009', '0.9.0', 'compose', '\x00', 'y', true, now() - interval '1 day') returning id`)
}

func (b *fixture) current() string {
	b.t.Helper()
	return b.raw.SQL(b.t, `select coalesce(string_agg(release_version, ','), '') from release_artifact where is_current`)
}

// awaitOutcome waits until a task in running has an outcome on disk.
func (b *fixture) awaitOutcome(name string) {
	b.t.Helper()
	b.eventually(name+" has an outcome", func() bool {
		_, err := os.Lstat(b.in(name, staging.Running, staging.OutcomeFile))
		return err == nil
	})
}

// A rollback that was asked for on the host is carried out while the database is
// away, behind the page, and the database is told of it when it is back.
func TestOfflineRollbackNeedsNoDatabase(t *testing.T) {
	b := newFixture(t, "good", "")
	artifact := strings.Fields(b.old())[0]
	b.proxy.Refuse(true)
	id, name := b.offline(artifact)
	b.start()
	b.awaitOutcome(name)
	b.eventually("the secrets are gone", func() bool {
		_, err := os.Lstat(b.in(name, staging.Running, staging.EnvFile))
		return err != nil
	})
	if got := b.noted(); got != "deploy, proceed true, changed" {
		t.Errorf("the stand-in said %s", got)
	}
	if got := b.pages(); got != "up down" {
		t.Errorf("the page went %s", got)
	}
	if got := b.row(id); got != "" {
		t.Errorf("the database has %s already", got)
	}
	b.proxy.Refuse(false)
	o := b.outcome(name)
	if !o.Succeeded || !o.Offline || o.ReleaseVersion != "0.9.0" {
		t.Errorf("outcome is %+v", o)
	}
	if got := b.row(id); got != "completed|" {
		t.Errorf("row is %s", got)
	}
	if got := b.current(); got != "0.9.0" {
		t.Errorf("%s is current", got)
	}
	if got := b.raw.SQL(t, fmt.Sprintf(`select type, release_artifact_id, result->>'offline', picked_up_at is not null from agent_task where id = '%s'`, id)); got != "rollback|"+artifact+"|true|t" {
		t.Errorf("row is %s", got)
	}
	b.noSecret()
}

// What waits for the database does not hold an offline rollback up, and what came
// of both is recorded in the order in which it came about.
func TestOfflineRollbackGoesBeforeAnOutcomeThatWaits(t *testing.T) {
	b := newFixture(t, "waits", "")
	artifact := strings.Fields(b.old())[0]
	c, first := b.ready()
	b.start()
	b.awaitNote("waiting")
	b.proxy.Refuse(true)
	b.letGo()
	b.awaitOutcome(first)
	id, second := b.offline(artifact)
	b.eventually("the stand-in waits again", func() bool { return strings.Count(b.noted(), "waiting") == 2 })
	b.letGo()
	b.awaitOutcome(second)
	b.proxy.Refuse(false)
	b.outcome(first)
	b.outcome(second)
	for _, id := range []task.ID{c.ID, id} {
		if got := b.row(id); got != "completed|" {
			t.Errorf("row of %s is %s", id, got)
		}
	}
	if got := b.current(); got != "0.9.0" {
		t.Errorf("%s is current", got)
	}
	if got := b.raw.SQL(t, `select release_version from release_artifact where is_previous`); got != "1.0.0" {
		t.Errorf("%s is previous", got)
	}
}

// A task whose claim cannot be confirmed gives way, and is carried out after the
// rollback was recorded.
func TestOfflineRollbackGoesBeforeAClaimThatWaits(t *testing.T) {
	b := newFixture(t, "good", "")
	artifact := strings.Fields(b.old())[0]
	c, first := b.ready()
	b.proxy.Refuse(true)
	b.start()
	b.eventually("the claim cannot be confirmed", func() bool { return strings.Contains(b.logged(), "confirm the claim failed") })
	_, second := b.offline(artifact)
	b.awaitOutcome(second)
	if got := b.where(first); got != staging.Running {
		t.Errorf("the first task lies in %q", got)
	}
	b.proxy.Refuse(false)
	b.outcome(second)
	b.outcome(first)
	if got := b.row(c.ID); got != "completed|" {
		t.Errorf("row is %s", got)
	}
	if got := b.current(); got != "1.0.0" {
		t.Errorf("%s is current", got)
	}
}

// begun marks a ready task as one that an earlier attempt was killed over.
func (b *fixture) begun(name string) {
	b.t.Helper()
	if err := os.WriteFile(b.in(name, staging.Ready, staging.AttemptsFile), []byte(`{"attempts": 1, "started_at": "2026-11-25T03:00:00Z"}`), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// An attempt that is refused says nothing about what the one before it left.
func TestARefusedSecondAttemptIsFollowedByARepair(t *testing.T) {
	b := newFixture(t, "refuses", "restores")
	c, name := b.ready()
	b.begun(name)
	b.start()
	o := b.outcome(name)
	if o.Error != "the engine is away; restored" || !o.Restored || o.Serving != "0.9.0" {
		t.Errorf("outcome is %+v", o)
	}
	if got := b.row(c.ID); got != "failed|"+o.Error {
		t.Errorf("row is %s", got)
	}
	if got := b.noted(); got != "deploy, recover" {
		t.Errorf("the stand-in said %s", got)
	}
}

// A page that a killed runner left up does not wait for the database, and neither
// does the project when the database stays away: it may be part of it.
func TestAnInterruptedTaskDoesNotWaitForTheDatabase(t *testing.T) {
	b := newFixture(t, "hangs", "asks-and-restores")
	c, name := b.ready()
	b.start()
	b.awaitNote("hanging")
	b.halt()
	b.proxy.Refuse(true)
	b.opts.Lease = time.Millisecond
	b.pageTimeout = time.Nanosecond
	b.start()
	b.awaitOutcome(name)
	if got := b.noted(); !strings.HasSuffix(got, "recover, proceed true") {
		t.Errorf("the stand-in said %s", got)
	}
	if got := b.pages(); got != "up down up down" { // up till the patience is over, then for the repair
		t.Errorf("the page went %s", got)
	}
	b.proxy.Refuse(false)
	b.outcome(name)
	if got := b.row(c.ID); got != "failed|restored" {
		t.Errorf("row is %s", got)
	}
}

// Helm is stopped before another agent may take its task over, and gone on with
// when the database says that none did.
func TestHelmStopsBeforeItsClaimLapses(t *testing.T) {
	b := newFixture(t, "waits-inside", "")
	b.opts.Target.Deployment = task.DeploymentKubernetes
	b.opts.Lease = 5 * time.Second
	c, name := b.ready()
	b.start()
	b.awaitNote("proceed true")
	b.proxy.Refuse(true)
	b.eventually("the deployment is killed", func() bool { return strings.Contains(b.logged(), "was killed before another agent") })
	if got := b.pages(); got != "up down" {
		t.Errorf("the page went %s", got)
	}
	b.proxy.Refuse(false)
	b.eventually("it begins again", func() bool { return strings.Count(b.noted(), "proceed true") == 2 })
	b.letGo()
	b.outcome(name)
	if got := b.row(c.ID); got != "failed|restored late" {
		t.Errorf("row is %s", got)
	}
}

// A release that was interrupted when an operator rolled back is not gone on
// with: that would undo the rollback. When the rollback fails, it is repaired, and
// what came of the rollback does not keep it waiting for the database.
func TestOfflineRollbackOverAnInterruptedTask(t *testing.T) {
	for _, c := range []struct{ name, mode, row, said string }{
		{"succeeds", "good", "failed|given up for a rollback without the database", "deploy, proceed true, hanging, deploy, proceed true, changed"},
		{"fails", "fails", "failed|restored", "deploy, proceed true, hanging, deploy, recover"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newFixture(t, "hangs", "restores")
			artifact := strings.Fields(b.old())[0]
			first, half := b.ready()
			b.start()
			b.awaitNote("hanging")
			b.halt()
			b.proxy.Refuse(true)
			b.opts.Lease, b.pageTimeout = time.Millisecond, time.Nanosecond
			for i, v := range b.opts.Env {
				if strings.HasPrefix(v, "FAKE_DEPLOY=") {
					b.opts.Env[i] = "FAKE_DEPLOY=" + c.mode
				}
			}
			id, name := b.offline(artifact)
			b.start()
			b.awaitOutcome(name)
			b.awaitOutcome(half)
			if got := b.noted(); got != c.said {
				t.Errorf("the stand-in said %s", got)
			}
			b.proxy.Refuse(false)
			b.outcome(half)
			b.outcome(name)
			if got := b.row(first.ID); got != c.row {
				t.Errorf("row is %s", got)
			}
			want := map[string]string{"good": "completed|", "fails": "failed|it does not come up"}[c.mode]
			if got := b.row(id); got != want {
				t.Errorf("row of the rollback is %s", got)
			}
			if got := strings.Fields(b.pages()); got[len(got)-1] != "down" {
				t.Errorf("the page went %s", got)
			}
		})
	}
}
