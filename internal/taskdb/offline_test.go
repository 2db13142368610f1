package taskdb_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// offline is the outcome of a rollback that was carried out an hour ago, while
// the database was away.
func offline(artifact string, ok bool) task.Outcome {
	asked := time.Now().UTC().Add(-time.Hour).Truncate(time.Microsecond)
	o := task.Outcome{
		Schema: task.OutcomeSchema, TaskID: taskdb.NewTaskID(), Kind: task.KindRollback, Offline: true,
		Token: task.Token(asked.Format(time.RFC3339Nano)), Succeeded: ok, Message: "said", ArtifactID: artifact,
		ReleaseVersion: "1", StartedAt: asked.Add(time.Second), FinishedAt: asked.Add(2 * time.Second),
	}
	if !ok {
		o.Error = "went wrong"
	}
	return o
}

// rowOf returns the id of an offline outcome's row: its own, or a number.
func rowOf(t *testing.T, raw *testenv.DB, o task.Outcome) task.ID {
	t.Helper()
	return task.ID(raw.SQL(t, fmt.Sprintf(`select id from agent_task where id::text = '%s'
		or format_type((select atttypid from pg_attribute where attrelid = 'agent_task'::regclass and attname = 'id'), null) = 'bigint'
			and abs(extract(epoch from picked_up_at::timestamptz - '%s')) < 0.001`, o.TaskID, o.Token)))
}

// row shows what an offline outcome's row and the flags became.
func row(t *testing.T, raw *testenv.DB, id task.ID) string {
	t.Helper()
	return raw.SQL(t, fmt.Sprintf("select * from agent_task where id = '%s'; select id, is_current, is_previous, applied_at from release_artifact order by id", id))
}

// The row of a rollback without the database is added once, with its outcome,
// and the flags move as after any other rollback.
func TestFinishAddsWhatWasDoneOffline(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		ids := map[string]string{}
		for _, version := range []string{"1", "2"} {
			ids[version] = pushArtifact(t, db, task.ChartHelm, version)
			addTask(t, db, task.KindDeploy, ids[version])
			finish(t, db, mustClaim(t, db, helm), ids[version], true)
		}
		o := offline(ids["1"], true)
		if err := db.Finish(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		id := rowOf(t, raw, o)
		got, err := db.Task(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		asked, err := time.Parse(time.RFC3339Nano, string(o.Token))
		if err != nil {
			t.Fatal(err)
		}
		if got.Status != task.StatusCompleted || got.Kind != task.KindRollback || got.ReleaseVersion != "1" || got.CompletedAt == nil ||
			got.ExecuteAfter == nil || got.ExecuteAfter.Sub(asked).Abs() > time.Millisecond {
			t.Errorf("the row holds %+v", got)
		}
		if got := flags(t, db); got != "1/2" {
			t.Errorf("the flags are %s", got)
		}
		// What the rollback left behind is not gone back to.
		if a, err := db.RollbackTarget(t.Context(), task.ChartHelm); !errors.Is(err, taskdb.ErrNotFound) {
			t.Errorf("the next rollback would go to %+v, %v", a, err)
		}
		before := row(t, raw, id)
		for range 2 {
			if err := db.Finish(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
		if after := row(t, raw, id); after != before {
			t.Errorf("repeated, it became\n%s\nfrom\n%s", after, before)
		}
		if n := raw.SQL(t, "select count(*) from agent_task"); n != "3" {
			t.Errorf("there are %s tasks", n)
		}
		other := o
		other.Succeeded, other.Error = false, "went wrong"
		if err := db.Finish(t.Context(), other); !errors.Is(err, taskdb.ErrFenced) {
			t.Errorf("another outcome of the same task: %v", err)
		}
	})
}

// A release that the database does not know, by any kind of id, or that failed,
// moves no flag; the row is added all the same.
func TestFinishOfflineWithoutItsArtifact(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		served := pushArtifact(t, db, task.ChartHelm, "1")
		addTask(t, db, task.KindDeploy, served)
		finish(t, db, mustClaim(t, db, helm), served, true)
		for name, o := range map[string]task.Outcome{
			"gone":   offline("00000000-0000-4000-8000-0000000000ff", true),
			"odd":    offline("no-uuid", true),
			"none":   offline("", true),
			"failed": offline(pushArtifact(t, db, task.ChartHelm, "2"), false),
		} {
			t.Run(name, func(t *testing.T) {
				for range 2 {
					if err := db.Finish(t.Context(), o); err != nil {
						t.Fatal(err)
					}
				}
				got := raw.SQL(t, fmt.Sprintf("select status, release_artifact_id is null from agent_task where id = '%s'", rowOf(t, raw, o)))
				want := map[bool]string{true: "completed|t", false: "failed|f"}[o.Succeeded]
				if got != want {
					t.Errorf("the row holds %s", got)
				}
				if got := flags(t, db); got != "1/-" {
					t.Errorf("the flags are %s", got)
				}
			})
		}
	})
}

// A lost reply leaves no second row.
func TestFinishOfflineOfALostReply(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, through := testenv.NewPostgresProxy(t, raw)
	o := offline("", true)
	proxy.LoseReplyTo("commit", 1)
	if err := open(t, through).Finish(t.Context(), o); err != nil || proxy.Lost() != 1 {
		t.Fatalf("Finish returns %v, %d replies were lost", err, proxy.Lost())
	}
	if got := raw.SQL(t, "select id, status from agent_task"); got != string(o.TaskID)+"|completed" {
		t.Errorf("the rows are %s", got)
	}
}
