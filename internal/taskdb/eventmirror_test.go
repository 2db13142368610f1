package taskdb_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func event(n int) task.Event {
	return task.Event{Time: time.Unix(int64(n), 0), Component: "runner", Phase: task.PhaseApplying, Text: fmt.Sprint("event ", n)}
}

func TestTimelineKeepsTheOrderOfEachClaim(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	var log strings.Builder
	for _, migrated := range []bool{false, true} {
		if migrated {
			if err := db.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		mirror := db.NewEventMirror(slog.New(slog.NewTextHandler(&log, nil)))
		a, b := mirror.For("a", "1"), mirror.For("b", "2")
		for n := range 250 {
			a(event(n))
			if n%100 == 0 {
				b(event(n))
			}
		}
		mirror.Close(time.Minute)
	}
	for id, want := range map[task.ID][]int{"a": upTo(250), "b": {0, 100, 200}} {
		events, err := db.Events(t.Context(), id, 0)
		if err != nil || len(events) != len(want) {
			t.Fatalf("%s has %d events, want %d: %v", id, len(events), len(want), err)
		}
		for i, n := range want {
			if events[i].Text != event(n).Text {
				t.Fatalf("event %d of %s is %q", i, id, events[i].Text)
			}
		}
	}
	if log.Len() > 0 {
		t.Errorf("it logs %s", log.String())
	}
}

func upTo(n int) []int {
	var all []int
	for i := range n {
		all = append(all, i)
	}
	return all
}

// Whatever the database does, whoever adds an event goes on, and Close ends.
func TestTimelineNeverWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	if err := open(t, raw.ConnString).Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	count := func() string { return raw.SQL(t, `select count(*), min(text) from wrktalk_agent.event`) }

	proxy, through := testenv.NewPostgresProxy(t, raw)
	db := open(t, through)
	proxy.Freeze() // accepts, and never answers
	var log strings.Builder
	mirror := db.NewEventMirror(slog.New(slog.NewTextHandler(&log, nil)))
	for n := range 1100 {
		mirror.For("a", "1")(event(n))
	}
	if !strings.Contains(log.String(), "will miss events") {
		t.Error("events were given up in silence")
	}
	mirror.Close(time.Millisecond)
	proxy.Thaw()
	if got := count(); got != "0|" {
		t.Errorf("a frozen database has %s", got)
	}

	proxy.Refuse(true)
	mirror = db.NewEventMirror(slog.New(slog.DiscardHandler))
	for n := range 3 {
		mirror.For("a", "1")(event(n))
	}
	proxy.Refuse(false)
	mirror.Close(time.Minute) // tries once more
	if got := count(); got != "3|event 0" {
		t.Errorf("a database that came back has %s", got)
	}

	var none *taskdb.EventMirror
	none.For("a", "1")(event(1))
	none.Close(time.Minute)
}

// A request to cancel is for one claim: it does not cancel the next one of the same
// task.
func TestCancellationIsForOneClaim(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		id := addTask(t, db, task.KindRollback, "")
		claimed := mustClaim(t, db, helm)
		if _, _, err := db.CancelRequested(t.Context(), id, claimed.Token); !errors.Is(err, taskdb.ErrNotMigrated) {
			t.Errorf("without the schema: %v", err)
		}
		if err := db.RequestCancel(t.Context(), id, claimed.Token, "why"); !errors.Is(err, taskdb.ErrNotMigrated) {
			t.Errorf("without the schema: %v", err)
		}
		if err := db.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, reason := range []string{"why", ""} { // a repetition forgets no reason
			if err := db.RequestCancel(t.Context(), id, claimed.Token, reason); err != nil {
				t.Fatal(err)
			}
		}
		if reason, ok, err := db.CancelRequested(t.Context(), id, claimed.Token); reason != "why" || !ok || err != nil {
			t.Errorf("the claim: %q, %v, %v", reason, ok, err)
		}
		if _, ok, err := db.CancelRequested(t.Context(), id, "another"); ok || err != nil {
			t.Errorf("another claim: %v, %v", ok, err)
		}
	})
}

// Only the state that is named is ended, and in progress only the claim.
func TestEndingFromOutside(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		o := task.Outcome{TaskID: addTask(t, db, task.KindRollback, ""), Token: "none", Error: "cancelled"}
		end := func(what string, f func() (bool, error), want bool) {
			t.Helper()
			if got, err := f(); err != nil || got != want {
				t.Errorf("%s: %v, %v", what, got, err)
			}
		}
		pending := func() (bool, error) { return db.EndPending(t.Context(), o) }
		running := func() (bool, error) { return db.EndInProgress(t.Context(), o) }
		end("a pending task as one in progress", running, false)
		claimed := mustClaim(t, db, helm)
		end("a task in progress as a pending one", pending, false)
		end("another claim", running, false)
		o.Token = claimed.Token
		end("the claim", running, true)
		end("it twice", running, false)
		if err := db.Heartbeat(t.Context(), o.TaskID, o.Token); !errors.Is(err, taskdb.ErrFenced) {
			t.Errorf("the runner is told %v", err)
		}
		o.TaskID = addTask(t, db, task.KindRollback, "")
		end("a pending task", pending, true)
		row, err := db.Task(t.Context(), o.TaskID)
		if err != nil || row.Status != task.StatusFailed || row.ErrorMessage != "cancelled" || row.CompletedAt == nil || row.Result == nil {
			t.Errorf("%+v, %v", row, err)
		}
		o.TaskID = "no-such-task"
		end("no task", pending, false)
	})
}

// A claim says by how much it is late, by the database's clock.
func TestClaimSaysHowLateItIs(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	id := addTask(t, db, task.KindRollback, "")
	raw.SQL(t, fmt.Sprintf("update agent_task set execute_after = now() - interval '90 minutes' where id = '%s'", id))
	if late := mustClaim(t, db, helm).Late; late < 90*time.Minute || late > 95*time.Minute {
		t.Errorf("late by %s", late)
	}
}
