package taskdb_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// What becomes of mails is written beside the work, the last state of each, also
// when the database was away meanwhile.
func TestDeliveriesOutliveTheDatabase(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, connString := testenv.NewPostgresProxy(t, raw)
	db := open(t, connString)
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	mirror := db.NewDeliveryMirror(slog.New(slog.NewTextHandler(&log, nil)), time.Hour)
	mail := taskdb.Delivery{TaskID: "t", Recipient: "ada@example.com", MessageID: "m", State: "queued"}
	proxy.Refuse(true)
	mirror.Record(mail)
	mail.State, mail.Attempts = "sent", 2
	mirror.Record(mail)
	other := mail
	other.Recipient, other.State = "bob@example.com", "failed"
	mirror.Record(other)
	proxy.Refuse(false)
	mirror.Close(time.Minute)
	got := raw.SQL(t, "select recipient, state, attempts from wrktalk_agent.outbox order by 1")
	if want := "ada@example.com|sent|2\nbob@example.com|failed|2"; got != want {
		t.Errorf("the outbox holds %q, want %q\n%s", got, want, log.String())
	}
}

// Without the agent's schema nothing is written, and nothing is logged.
func TestDeliveriesWithoutTheSchema(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t).ConnString)
	var log bytes.Buffer
	mirror := db.NewDeliveryMirror(slog.New(slog.NewTextHandler(&log, nil)), time.Hour)
	mirror.Record(taskdb.Delivery{TaskID: "t", Recipient: "r", MessageID: "m", State: "sent"})
	mirror.Prune()
	mirror.Close(time.Minute)
	if log.Len() > 0 {
		t.Errorf("it says %s", log.String())
	}
}

func TestOldRowsArePruned(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	ctx := t.Context()
	if n, err := db.Prune(ctx, time.Hour); err != nil || n != 0 {
		t.Errorf("without the schema: %d, %v", n, err)
	}
	if err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	for _, id := range []task.ID{"old", "new"} {
		events := []task.Event{{Time: time.Now(), Component: "c", Phase: task.PhaseApplying, Text: "x"}}
		for _, err := range []error{
			db.RecordAttempt(ctx, taskdb.Attempt{TaskID: id, Token: "t", Owner: "o"}),
			db.AppendEvents(ctx, id, "t", events),
			db.RecordDelivery(ctx, taskdb.Delivery{TaskID: id, Recipient: "r", MessageID: string(id), State: "sent"}),
			db.RequestCancel(ctx, id, "t", ""),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	raw.SQL(t, `update wrktalk_agent.attempt set started = now() - interval '91 days' where task = 'old';
		update wrktalk_agent.event set at = now() - interval '91 days' where task = 'old';
		update wrktalk_agent.cancellation set at = now() - interval '91 days' where task = 'old';
		update wrktalk_agent.outbox set at = now() - interval '91 days' where task = 'old'`)
	// A mail that is recorded again as it is, as after a restart, gets no younger.
	if err := db.RecordDelivery(ctx, taskdb.Delivery{TaskID: "old", Recipient: "r", MessageID: "old", State: "sent"}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	mirror := db.NewDeliveryMirror(slog.New(slog.NewTextHandler(&log, nil)), 90*24*time.Hour)
	mirror.Prune()
	mirror.Prune() // not due again
	mirror.Close(time.Minute)
	for _, table := range []string{"attempt", "event", "outbox", "cancellation"} {
		if got := raw.SQL(t, "select task from wrktalk_agent."+table); got != "new" {
			t.Errorf("%s holds %q", table, got)
		}
	}
	if n := strings.Count(log.String(), "removed old rows"); n != 1 || !strings.Contains(log.String(), "rows=4") {
		t.Errorf("the log says\n%s", log.String())
	}
}
