package taskdb_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestListenWakesUp(t *testing.T) {
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
		case <-time.After(30 * time.Second):
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
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	if err := db.Listen(t.Context(), func() { t.Error("a hint") }); !errors.Is(err, taskdb.ErrNotMigrated) {
		t.Errorf("listen: %v", err)
	}
}
