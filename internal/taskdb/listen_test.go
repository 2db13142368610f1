package taskdb_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestListenWakesUp(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, through := testenv.NewPostgresProxy(t, raw)
	direct, db := open(t, raw.ConnString), open(t, through)
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	hints, done := make(chan struct{}, 100), make(chan error, 1)
	go func() { done <- db.Listen(ctx, func() { hints <- struct{}{} }) }()
	expect := func(what string) {
		t.Helper()
		select {
		case <-hints:
		case err := <-done:
			t.Fatalf("%s: listening ended with %v", what, err)
		case <-time.After(10 * time.Minute):
			t.Fatalf("%s gave no hint", what)
		}
	}
	expect("connecting")
	addTask(t, direct, task.KindRollback, "")
	expect("a new task")
	got := mustClaim(t, direct, helm)
	finish(t, direct, got, "", false)
	expect("the end of a task")
	raw.SQL(t, insertTask("deploy", "pending", "'infinity'"))
	expect("a task of another program")
	raw.SQL(t, "update agent_task set execute_after = now() where status = 'pending'")
	expect("a new time")

	proxy.Refuse(true) // the listener is cut, and does not get through
	addTask(t, direct, task.KindRollback, "")
	proxy.Refuse(false)
	expect("connecting again")
	addTask(t, direct, task.KindRollback, "")
	expect("a task after the reconnect")

	cancel()
	if err := <-done; err != nil {
		t.Errorf("listening ended with %v", err)
	}
	if len(hints) > 0 {
		t.Errorf("%d hints too many: a claim gives none", len(hints))
	}
}

func TestListenNeedsTheMigration(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	if err := db.Listen(t.Context(), func() { t.Error("a hint") }); !errors.Is(err, taskdb.ErrNotMigrated) {
		t.Errorf("listen: %v", err)
	}
}

// Announcements do not pass a pooler that gives connections to others between two
// transactions, which is found out; everything else does.
func TestTransactionPoolersAreNoticed(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	through := testenv.NewPgBouncer(t, raw, "transaction")
	db := open(t, through)
	if err := errors.Join(db.CheckSchema(t.Context(), helm), db.Migrate(t.Context())); err != nil {
		t.Fatal(err)
	}
	heard := make(chan error, 1)
	go func() { heard <- db.Announced(t.Context()) }()
	if err := db.Listen(t.Context(), func() { t.Error("a hint") }); !errors.Is(err, taskdb.ErrUnheard) || taskdb.Transient(err) {
		t.Errorf("listen: %v", err)
	}
	if err := <-heard; !errors.Is(err, taskdb.ErrUnheard) {
		t.Errorf("announced: %v", err)
	}
	addTask(t, db, task.KindRollback, "")
	finish(t, db, mustClaim(t, db, helm), "", false)

	err := open(t, through+"&search_path=public").Ping(t.Context())
	if !errors.Is(err, taskdb.ErrParameter) || !strings.Contains(taskdb.Explain(err), "the pooler does not pass it on") {
		t.Errorf("a parameter that PgBouncer refuses: %v: %s", err, taskdb.Explain(err))
	}
	session := open(t, testenv.NewPgBouncer(t, raw, "session"))
	if err := session.Announced(t.Context()); err != nil {
		t.Errorf("through a pooler that keeps sessions: %v", err)
	}
}
