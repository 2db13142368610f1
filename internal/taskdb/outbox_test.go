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
func TestOutboxOutlivesTheDatabase(t *testing.T) {
	raw := testenv.Database(t)
	proxy, connString := testenv.NewPostgresProxy(t, raw)
	db := open(t, connString)
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	outbox := db.NewOutbox(slog.New(slog.NewTextHandler(&log, nil)), time.Hour)
	mail := taskdb.Mail{TaskID: "t", Recipient: "ada@example.com", MessageID: "m", State: "queued"}
	proxy.Refuse(true)
	outbox.Record(mail)
	mail.State, mail.Attempts = "sent", 2
	outbox.Record(mail)
	other := mail
	other.Recipient, other.State = "bob@example.com", "failed"
	outbox.Record(other)
	proxy.Refuse(false)
	outbox.Close(time.Minute)
	got := raw.SQL(t, "select recipient, state, attempts from wrktalk_agent.outbox order by 1")
	if want := "ada@example.com|sent|2\nbob@example.com|failed|2"; got != want {
		t.Errorf("the outbox holds %q, want %q\n%s", got, want, log.String())
	}
}

// Without the agent's schema nothing is written, and nothing is said.
func TestOutboxWithoutTheSchema(t *testing.T) {
	db := open(t, testenv.Database(t).ConnString)
	var log bytes.Buffer
	outbox := db.NewOutbox(slog.New(slog.NewTextHandler(&log, nil)), time.Hour)
	outbox.Record(taskdb.Mail{TaskID: "t", Recipient: "r", MessageID: "m", State: "sent"})
	outbox.Prune()
	outbox.Close(time.Minute)
	if log.Len() > 0 {
		t.Errorf("it says %s", log.String())
	}
}

func TestOldRowsArePruned(t *testing.T) {
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
			db.RecordMail(ctx, taskdb.Mail{TaskID: id, Recipient: "r", MessageID: string(id), State: "sent"}),
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
	if err := db.RecordMail(ctx, taskdb.Mail{TaskID: "old", Recipient: "r", MessageID: "old", State: "sent"}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	outbox := db.NewOutbox(slog.New(slog.NewTextHandler(&log, nil)), 90*24*time.Hour)
	outbox.Prune()
	outbox.Prune() // not due again
	outbox.Close(time.Minute)
	for _, table := range []string{"attempt", "event", "outbox", "cancellation"} {
		if got := raw.SQL(t, "select task from wrktalk_agent."+table); got != "new" {
			t.Errorf("%s holds %q", table, got)
		}
	}
	if n := strings.Count(log.String(), "removed old rows"); n != 1 || !strings.Contains(log.String(), "rows=4") {
		t.Errorf("the log says\n%s", log.String())
	}
}
