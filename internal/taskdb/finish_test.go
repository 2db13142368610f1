package taskdb_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestFinishWritesEverything(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		for _, ok := range []bool{true, false} {
			artifact := pushArtifact(t, db, task.ChartHelm, "2.5.0")
			addTask(t, db, task.KindDeploy, artifact)
			got := mustClaim(t, db, helm)
			o := outcome(got, artifact, ok)
			o.ReleaseVersion, o.HelmRevision = "2.5.0", 5
			if err := db.Finish(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			row, err := db.Task(t.Context(), got.ID)
			if err != nil {
				t.Fatal(err)
			}
			var result map[string]any
			if err := json.Unmarshal(row.Result, &result); err != nil {
				t.Fatalf("result %s: %v", row.Result, err)
			}
			if row.Status != o.Status() || row.CompletedAt == nil || row.ErrorMessage != o.Error || row.Token != got.Token ||
				result["helmRevision"] != 5.0 || result["release_version"] != "2.5.0" || row.ReleaseVersion != "2.5.0" {
				t.Errorf("ok is %v: the row holds %+v with %v", ok, row, result)
			}
			if isNull := raw.SQL(t, fmt.Sprintf("select error_message is null from agent_task where id = '%s'", got.ID)); (isNull == "t") != ok {
				t.Errorf("ok is %v: the error is null: %s", ok, isNull)
			}
		}
	})
}

func TestFinishMayBeRepeated(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		artifact := pushArtifact(t, db, task.ChartHelm, "1")
		addTask(t, db, task.KindDeploy, artifact)
		o := outcome(mustClaim(t, db, helm), artifact, true)
		for range 3 {
			if err := db.Finish(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
		o.Token = "other"
		if err := db.Finish(t.Context(), o); !errors.Is(err, taskdb.ErrFenced) {
			t.Errorf("another token: %v", err)
		}
		for _, id := range []task.ID{"none", "00000000-0000-4000-8000-0000000000ff"} {
			o.TaskID = id
			if err := db.Finish(t.Context(), o); !errors.Is(err, taskdb.ErrFenced) {
				t.Errorf("task %q: %v", id, err)
			}
		}
	})
}

// An operator who put the task back to pending, or ended it, fences the claim.
func TestFinishIsFencedByAnOperator(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	addTask(t, db, task.KindRollback, "")
	got := mustClaim(t, db, helm)
	for _, change := range []string{"status = 'pending'", "status = 'failed', picked_up_at = null"} {
		raw.SQL(t, "update agent_task set "+change)
		if err := db.Finish(t.Context(), outcome(got, "", true)); !errors.Is(err, taskdb.ErrFenced) {
			t.Errorf("after %s: %v", change, err)
		}
	}
}

// Somebody who ends the row and leaves its token alone, as `cancel --force` and
// some backends do, fences the claim as well: what comes of it later is neither
// recorded nor announced.
func TestFinishIsFencedByAnotherEnding(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		served, artifact := pushArtifact(t, db, task.ChartHelm, "1"), pushArtifact(t, db, task.ChartHelm, "2")
		addTask(t, db, task.KindDeploy, served)
		finish(t, db, mustClaim(t, db, helm), served, true)
		for name, end := range map[string]func(got *taskdb.Task){
			"operator": func(got *taskdb.Task) {
				o := task.Outcome{TaskID: got.ID, Kind: got.Kind, Token: got.Token, Message: "The task was cancelled", Error: "ended by an operator"}
				if ended, err := db.EndInProgress(t.Context(), o); err != nil || !ended {
					t.Fatalf("EndInProgress returns %v, %v", ended, err)
				}
			},
			"backend, failed": func(got *taskdb.Task) {
				raw.SQL(t, fmt.Sprintf("update agent_task set status = 'failed' where id = '%s'", got.ID))
			},
			"backend, completed": func(got *taskdb.Task) {
				raw.SQL(t, fmt.Sprintf("update agent_task set status = 'completed', result = '[]' where id = '%s'", got.ID))
			},
			"backend, like us": func(got *taskdb.Task) {
				raw.SQL(t, fmt.Sprintf(`update agent_task set status = 'completed', result = '{"status": "success", "message": "done"}' where id = '%s'`, got.ID))
			},
		} {
			t.Run(name, func(t *testing.T) {
				addTask(t, db, task.KindDeploy, artifact)
				got := mustClaim(t, db, helm)
				end(got)
				before := raw.SQL(t, fmt.Sprintf("select * from agent_task where id = '%s'", got.ID))
				for _, ok := range []bool{true, false} {
					err := db.Finish(t.Context(), outcome(got, artifact, ok))
					if !errors.Is(err, taskdb.ErrFenced) || !strings.Contains(err.Error(), "by somebody else") {
						t.Errorf("succeeded is %v: %v", ok, err)
					}
				}
				if after := raw.SQL(t, fmt.Sprintf("select * from agent_task where id = '%s'", got.ID)); after != before {
					t.Errorf("the row became\n%s\nfrom\n%s", after, before)
				}
				if got := flags(t, db); got != "1/-" {
					t.Errorf("the flags are %s", got)
				}
			})
		}
	})
}

func TestDefect14LostCommitReplyIsReadBack(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, _ *taskdb.DB) {
		proxy, through := testenv.NewPostgresProxy(t, raw)
		db := open(t, through)
		artifact := pushArtifact(t, db, task.ChartCompose, "1")
		addTask(t, db, task.KindDeploy, artifact)
		got := mustClaim(t, db, compose)
		proxy.LoseReplyTo("commit", 2)
		finish(t, db, got, artifact, true)
		if proxy.Lost() == 0 {
			t.Fatal("no reply was lost")
		}
		if rows := raw.SQL(t, "select status from agent_task; select is_current from release_artifact"); rows != "completed\nt" {
			t.Errorf("recorded as %q", rows)
		}
	})
}

// A connection that is cut before the commit leaves nothing behind, and the
// next try does it.
func TestDefect14FinishIsAllOrNothing(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, through := testenv.NewPostgresProxy(t, raw)
	db := open(t, through)
	artifact := pushArtifact(t, db, task.ChartCompose, "1")
	addTask(t, db, task.KindDeploy, artifact)
	got := mustClaim(t, db, compose)
	proxy.LoseReplyTo("update release_artifact", 1)
	finish(t, db, got, artifact, true)
	if proxy.Lost() != 1 {
		t.Fatal("no reply was lost")
	}
	if rows := raw.SQL(t, "select status from agent_task; select is_current from release_artifact"); rows != "completed\nt" {
		t.Errorf("recorded as %q", rows)
	}
}

func TestFinishTakesAnyText(t *testing.T) {
	t.Parallel()
	hostile := "NUL \x00, bad UTF-8 \xff\xfe, \\u0000, quote ' \" \\ ;--, ünï ☃ \U0001F680 " + strings.Repeat("long ", 1<<20)
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		addTask(t, db, task.KindRollback, "")
		o := outcome(mustClaim(t, db, helm), "", false)
		o.Message, o.Error, o.ReleaseVersion, o.Serving = hostile, hostile, hostile, hostile
		if err := db.Finish(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		row, err := db.Task(t.Context(), o.TaskID)
		if err != nil || row.Status != task.StatusFailed || !strings.Contains(row.ErrorMessage, "☃") || !json.Valid(row.Result) {
			t.Errorf("recorded %.200v, %v", row, err)
		}
		if err := db.Finish(t.Context(), o); err != nil {
			t.Errorf("the next try does not know what the first one wrote: %v", err)
		}
	})
}

// A backend with a narrow column, or a database that cannot hold a character,
// must not keep a task in progress for ever.
func TestFinishFitsNarrowColumnsAndEncodings(t *testing.T) {
	t.Parallel()
	t.Run("narrow", func(t *testing.T) {
		raw := testenv.Database(t)
		raw.SQL(t, "alter table agent_task alter error_message type varchar(255)")
		finishWith(t, raw.ConnString, strings.Repeat("x", 1000))
	})
	t.Run("latin1", func(t *testing.T) {
		server := testenv.SharedPostgres(t)
		name := "latin1_of_" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "_"))
		for _, sql := range []string{"create database " + name + " template template0 encoding 'LATIN1' locale 'C'"} {
			if _, err := server.SQL("postgres", sql); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { _, _ = server.SQL("postgres", "drop database "+name+" with (force)") })
		if _, err := server.SQL(name, testenv.SchemaV42.SQL()); err != nil {
			t.Fatal(err)
		}
		finishWith(t, server.URL(name), "snowman ☃")
	})
}

func finishWith(t *testing.T, connString, complaint string) {
	t.Helper()
	db := open(t, connString)
	addTask(t, db, task.KindRollback, "")
	o := outcome(mustClaim(t, db, helm), "", false)
	o.Error = complaint
	if err := db.Finish(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	row, err := db.Task(t.Context(), o.TaskID)
	if err != nil || row.Status != task.StatusFailed || row.ErrorMessage == "" {
		t.Errorf("recorded %+v, %v", row, err)
	}
	if err := db.Finish(t.Context(), o); err != nil {
		t.Errorf("the next try does not know what the first one wrote: %v", err)
	}
}

// flagSteps is a history of releases; after each step the flags are compared:
// the current one, then the previous one.
var flagSteps = map[string][]struct {
	kind task.Kind
	to   string
	fail bool
	want string
	next string // where a rollback that names nothing would go; "" is not compared
}{
	"first deploy":        {{to: "a", want: "a/-"}},
	"upgrades":            {{to: "a", want: "a/-"}, {to: "b", want: "b/a"}, {to: "c", want: "c/b"}},
	"defect 11: redeploy": {{to: "a", want: "a/-"}, {to: "b", want: "b/a"}, {to: "b", want: "b/a"}, {to: "b", want: "b/a"}},
	"deploy the previous": {{to: "a", want: "a/-"}, {to: "b", want: "b/a"}, {to: "a", want: "a/b"}},
	"a failure": {
		{to: "a", want: "a/-"},
		{to: "b", want: "b/a"},
		{to: "c", fail: true, want: "b/a"},
		{kind: task.KindRollback, to: "a", fail: true, want: "b/a"},
	},
	"rollback": {{to: "a", want: "a/-"}, {to: "b", want: "b/a"}, {kind: task.KindRollback, to: "a", want: "a/b", next: "-"}},
	"defect 12: two rollbacks": {
		{to: "a", want: "a/-", next: "-"},
		{to: "b", want: "b/a", next: "a"},
		{to: "c", want: "c/b", next: "b"},
		{kind: task.KindRollback, to: "b", want: "b/c", next: "a"},
		{kind: task.KindRollback, to: "a", want: "a/b", next: "-"},
	},
	"defect 12: rollbacks and deployments in turn": {
		{to: "a", want: "a/-"},
		{to: "b", want: "b/a"},
		{to: "c", want: "c/b"},
		{kind: task.KindRollback, to: "b", want: "b/c", next: "a"},
		{kind: task.KindRollback, to: "a", want: "a/b", next: "-"},
		{to: "d", want: "d/a", next: "a"},
		{kind: task.KindRollback, to: "a", want: "a/d", next: "-"},
		{to: "c", want: "c/a", next: "a"},
		{to: "d", want: "d/c", next: "c"},
		{kind: task.KindRollback, to: "c", want: "c/d", next: "a"},
	},
	"defect 12: rollback over two": {
		{to: "a", want: "a/-"},
		{to: "b", want: "b/a"},
		{to: "c", want: "c/b"},
		{kind: task.KindRollback, to: "a", want: "a/c", next: "b"},
	},
	"defect 12: what was left behind counts again once deployed": {
		{to: "a", want: "a/-"},
		{to: "b", want: "b/a"},
		{kind: task.KindRollback, to: "a", want: "a/b", next: "-"},
		{to: "b", want: "b/a", next: "a"},
		{to: "c", want: "c/b", next: "b"},
	},
	"rollback to the current": {{to: "a", want: "a/-"}, {to: "b", want: "b/a"}, {kind: task.KindRollback, to: "b", want: "b/a"}},
}

func TestFlags(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		for name, steps := range flagSteps {
			t.Run(name, func(t *testing.T) {
				raw.SQL(t, "truncate agent_task, release_artifact")
				ids := map[string]string{}
				for _, version := range []string{"a", "b", "c", "d"} {
					ids[version] = pushArtifact(t, db, task.ChartHelm, version)
				}
				other := pushArtifact(t, db, task.ChartCompose, "other")
				raw.SQL(t, fmt.Sprintf("update release_artifact set is_current = true, is_previous = null where id = '%s'", other))
				for i, step := range steps {
					kind := step.kind
					if kind == "" {
						kind = task.KindDeploy
					}
					addTask(t, db, kind, ids[step.to])
					finish(t, db, mustClaim(t, db, helm), ids[step.to], !step.fail)
					if got := flags(t, db); got != step.want {
						t.Fatalf("after step %d, %s to %s: %s, not %s", i+1, kind, step.to, got, step.want)
					}
					next := "-"
					if a, err := db.RollbackTarget(t.Context(), task.ChartHelm); err == nil {
						next = a.Version
					} else if !errors.Is(err, taskdb.ErrNotFound) {
						t.Fatal(err)
					}
					if step.next != "" && next != step.next {
						t.Fatalf("after step %d, %s to %s: a rollback would go to %s, not %s", i+1, kind, step.to, next, step.next)
					}
				}
				if rows := raw.SQL(t, "select is_current, is_previous is null from release_artifact where chart_type = 'compose'"); rows != "t|t" {
					t.Errorf("the other chart type was touched: %s", rows)
				}
			})
		}
	})
}

func flags(t *testing.T, db *taskdb.DB) string {
	t.Helper()
	text := "-/-"
	if current, err := db.Current(t.Context(), task.ChartHelm); err == nil {
		text = current.Version + "/-"
	}
	if previous, err := db.Previous(t.Context(), task.ChartHelm); err == nil {
		text = strings.TrimSuffix(text, "-") + previous.Version
	}
	return text
}

func TestFlagsOfAnUntidyTable(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	ids := map[string]string{}
	for _, version := range []string{"a", "b", "c", "d"} {
		ids[version] = pushArtifact(t, db, task.ChartHelm, version)
	}
	raw.SQL(t, `update release_artifact set is_current = true, applied_at = case release_version when 'a' then timestamptz '2024-01-01' end where release_version in ('a', 'b');
		update release_artifact set is_previous = true where release_version in ('a', 'c');
		update release_artifact set is_current = null, is_previous = null where release_version = 'd'`)
	addTask(t, db, task.KindDeploy, ids["d"])
	finish(t, db, mustClaim(t, db, helm), ids["d"], true)
	got := raw.SQL(t, "select release_version, is_current, is_previous from release_artifact order by 1")
	if want := "a|f|t\nb|f|f\nc|f|f\nd|t|f"; got != want {
		t.Errorf("the flags are\n%s\nnot\n%s", got, want)
	}
	// The artifact is gone by the time its task ends: the task still ends.
	addTask(t, db, task.KindDeploy, ids["b"])
	claimed := mustClaim(t, db, helm)
	finish(t, db, claimed, "00000000-0000-4000-8000-0000000000ff", true)
}
