package notifier_test

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// hangUp returns settings of a mail server that wants no client.
func hangUp(t *testing.T) taskdb.MailSettings {
	port := testenv.ServeTCP(t, func(c net.Conn, _ *bufio.Reader) { _ = c.Close() })
	return taskdb.MailSettings{Host: "127.0.0.1", Port: port, From: "agent@example.com"}
}

func TestEveryActiveAdminGetsOneMail(t *testing.T) {
	f := newFixture(t, "ada@example.com", "bob@example.com", "Carl <carl@example.com>", "ADA@example.com", "dora@example.com", "eve@example.com")
	f.finished("a", outcomes()["success"])
	f.run(notifier.Options{})
	f.gone()
	mails := f.mails(5)
	if got := recipients(mails); !slices.Equal(got, []string{"ada@example.com", "bob@example.com", "carl@example.com", "dora@example.com", "eve@example.com"}) {
		t.Errorf("mails went to %q", got)
	}
	ids := messageIDs(t, mails)
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 5 {
		t.Errorf("Message-IDs repeat: %q", ids)
	}
	// A later outcome is noticed.
	f.finished("b", outcomes()["failed"])
	f.gone()
	f.mails(10)
}

func TestRetryAndFinalityAreEachRecipientsOwn(t *testing.T) {
	f := newFixture(t, "busy@example.com", "gone@example.com", "fine@example.com", "not an address", "slow@example.com")
	f.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "busy@example.com", Code: 451, Times: 3})
	f.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "gone@example.com", Code: 550})
	f.server.Refuse(testenv.Refusal{Verb: "DATA", Address: "slow@example.com", Code: 452, Times: 2})
	f.finished("a", outcomes()["success"])
	f.run(notifier.Options{})
	f.gone()
	if got := recipients(f.mails(3)); !slices.Equal(got, []string{"busy@example.com", "fine@example.com", "slow@example.com"}) {
		t.Errorf("mails went to %q", got)
	}
	if n := f.server.Refused(); n != 3+1+2 {
		t.Errorf("%d refusals: a final one was tried again, or a passing one was not", n)
	}
	for _, want := range []string{
		`level=ERROR msg="mail not sent" component=notifier task=a state=done recipient=gone@example.com`,
		`level=ERROR msg="cannot mail an active administrator`,
	} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log does not say %s\n%s", want, f.log)
		}
	}
}

func TestDefect23SettingsAreReadAtEachSend(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	wrong := hangUp(t)
	f.db.settings = wrong
	f.finished("a", outcomes()["success"])
	f.run(notifier.Options{})
	f.log.Await(f.ctx, t, "mail not sent yet")
	f.db.set(func(db *memoryDB) { db.settings = f.settings() })
	f.gone()
	f.mails(1)
}

func TestDatabaseThatIsDownDelaysMail(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	f.db.err, f.db.failures = errors.New("connection refused"), 3
	f.finished("a", outcomes()["success"])
	f.server.Refuse(testenv.Refusal{Verb: "RCPT", Code: 451, Times: 1})
	f.run(notifier.Options{})
	if err := f.server.AwaitRefused(f.ctx, 1); err != nil {
		t.Fatal(err)
	}
	f.gone()
	f.mails(1)
	if n := strings.Count(f.log.String(), "connection refused"); n != 3 {
		t.Errorf("%d of 3 failures were logged\n%s", n, f.log)
	}
}

// A notifier that cannot find out whom to tell says so where its readiness is
// asked for, and takes it back.
func TestReadinessFollowsTheDatabase(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	f.db.err, f.db.failures = errors.New("connection refused"), 3
	f.finished("a", outcomes()["success"])
	var mu sync.Mutex
	var said []string
	stop := f.run(notifier.Options{Ready: func(reason string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, reason)
	}})
	f.gone()
	stop()
	const why = "prepare mail: read mail settings: connection refused"
	said = slices.Compact(said)
	if !slices.Equal(said, []string{"", why, ""}) {
		t.Errorf("said %q", said)
	}
}

func TestNoServerIsSaidOnceAndIsNoError(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	f.db.settings = taskdb.MailSettings{From: "agent@example.com"}
	for _, name := range []string{"a", "b", "c"} {
		f.finished(name, outcomes()["success"])
	}
	f.run(notifier.Options{})
	f.gone()
	log := f.log.String()
	if n := strings.Count(log, "no mail is sent: set smtp_host"); n != 1 || strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
		t.Errorf("said %d times:\n%s", n, log)
	}
	// The next task sees that mail was switched on.
	f.db.set(func(db *memoryDB) { db.settings = f.settings() })
	f.finished("d", outcomes()["success"])
	f.gone()
	f.mails(1)
}

func TestNobodyToTell(t *testing.T) {
	f := newFixture(t)
	f.finished("a", outcomes()["success"])
	f.finished("b", outcomes()["success"])
	f.run(notifier.Options{})
	f.gone()
	if n := strings.Count(f.log.String(), "no active administrator"); n != 1 {
		t.Errorf("said %d times:\n%s", n, f.log)
	}
	f.mails(0)
}

func TestMailSwitchedOffMeanwhileIsDropped(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	f.db.settings = hangUp(t)
	f.finished("a", outcomes()["success"])
	f.run(notifier.Options{})
	f.log.Await(f.ctx, t, "mail not sent yet")
	f.db.set(func(db *memoryDB) { db.settings = taskdb.MailSettings{} })
	f.gone()
	if log := f.log.String(); strings.Count(log, "set smtp_host") != 1 || strings.Contains(log, "level=ERROR") {
		t.Errorf("log says\n%s", log)
	}
}

func TestOldMailIsGivenUp(t *testing.T) {
	f := newFixture(t, "ada@example.com", "bob@example.com")
	f.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "bob@example.com", Code: 451})
	f.finished("a", outcomes()["success"])
	var mu sync.Mutex
	var ahead time.Duration
	f.run(notifier.Options{MaxAge: time.Hour}, func(n *notifier.Notifier) {
		n.SetNow(func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(ahead)
		})
	})
	if err := f.server.AwaitRefused(f.ctx, 3); err != nil {
		t.Fatal(err)
	}
	f.left(1)
	mu.Lock()
	ahead = 61 * time.Minute
	mu.Unlock()
	f.gone()
	f.mails(1)
	if log := f.log.String(); !strings.Contains(log, "gave up after 1h0m0s") {
		t.Errorf("log says\n%s", log)
	}
}

// A mail that got too old while the agent was down is tried once more before
// it is given up.
func TestOldMailIsTriedOnceMoreAfterALongDowntime(t *testing.T) {
	for name, refused := range map[string]bool{"taken": false, "refused": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "ada@example.com")
			f.server.Refuse(testenv.Refusal{Verb: "RCPT", Code: 451, Times: 1})
			f.finished("a", outcomes()["success"])
			stop := f.run(notifier.Options{}, func(n *notifier.Notifier) {
				n.SetBackoff(func(int, time.Duration) time.Duration { return time.Hour })
			})
			f.log.Await(f.ctx, t, "mail not sent yet")
			stop()
			if refused {
				f.server.Refuse(testenv.Refusal{Verb: "RCPT", Code: 451})
			}
			f.run(notifier.Options{MaxAge: time.Hour}, func(n *notifier.Notifier) {
				n.SetNow(func() time.Time { return time.Now().Add(1000 * time.Hour) })
			})
			f.gone()
			if n := f.server.Refused(); refused && n != 2 {
				t.Errorf("%d attempts were refused, want one of each start", n)
			}
			if !refused {
				f.mails(1)
			}
			if gaveUp := strings.Contains(f.log.String(), "gave up after 1h0m0s and 2 attempts"); gaveUp != refused {
				t.Errorf("the log says\n%s", f.log)
			}
		})
	}
}

// What becomes of each mail is told elsewhere, too.
func TestEveryDeliveryIsReported(t *testing.T) {
	f := newFixture(t, "ada@example.com", "bob@example.com", "not an address")
	f.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "ada@example.com", Code: 451, Times: 1})
	f.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "bob@example.com", Code: 550})
	o := outcomes()["success"]
	f.finished("a", o)
	var mu sync.Mutex
	said, done := map[string][]string{}, 0
	stop := f.run(notifier.Options{
		OnDelivery: func(id task.ID, d notifier.Delivery) {
			mu.Lock()
			defer mu.Unlock()
			if id != o.TaskID {
				t.Errorf("a mail about task %s", id)
			}
			said[d.Address] = append(said[d.Address], fmt.Sprint(d.State, d.Attempts))
		},
		OnDone: func() { mu.Lock(); done++; mu.Unlock() },
	})
	f.gone()
	stop()
	want := map[string][]string{
		"ada@example.com": {"pending0", "pending1", "sent2"},
		"bob@example.com": {"pending0", "failed0"}, "not an address": {"failed0"},
	}
	if !maps.EqualFunc(said, want, slices.Equal) || done != 1 {
		t.Errorf("said %v; done %d times", said, done)
	}
}

// A crash after the server took a mail and before that was recorded repeats
// the mail, and only that one, under the same Message-ID.
func TestRepeatAfterACrashHasTheSameMessageID(t *testing.T) {
	f := newFixture(t, "ada@example.com", "bob@example.com")
	o := outcomes()["failed"]
	f.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "bob@example.com", Code: 451})
	st := f.finished("a", o)
	stop := f.run(notifier.Options{})
	f.mails(1)
	if err := f.server.AwaitRefused(f.ctx, 1); err != nil {
		t.Fatal(err)
	}
	stop()
	before, err := os.ReadFile(st.Path(notifier.DeliveriesFile))
	if err != nil {
		t.Fatal(err)
	}
	l, err := notifier.ReadDeliveries(st)
	if err != nil || l.List[0].State != notifier.StateSent || l.List[1].State != notifier.StatePending {
		t.Fatalf("the record is %+v (%v)", l, err)
	}
	if err := st.Remove(); err != nil {
		t.Fatal(err)
	}

	for range 2 { // the second time is after the crash
		st = f.finished("a", o)
		if err := os.WriteFile(st.Path(notifier.DeliveriesFile), before, 0o600); err != nil {
			t.Fatal(err)
		}
		f.restartServer()
		f.db.set(func(db *memoryDB) {
			db.settings = f.settings()
			db.settings.From = "other@example.org" // a new sender makes no new Message-ID
			db.admins = nil                        // nor does a changed table change whom this outcome is told to
		})
		stop = f.run(notifier.Options{})
		f.gone()
		stop()
		mails := f.mails(1)
		if got := recipients(mails); !slices.Equal(got, []string{"bob@example.com"}) {
			t.Errorf("mails went to %q", got)
		}
		if id := messageIDs(t, mails)[0]; id != "<"+l.List[1].MessageID+">" {
			t.Errorf("Message-ID is %s, was %s", id, l.List[1].MessageID)
		}
	}
}

func TestStopIsPromptWithASilentServer(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	reached := make(chan struct{})
	f.db.settings.Port = testenv.ServeTCP(t, func(_ net.Conn, r *bufio.Reader) {
		close(reached)
		_, _ = r.ReadByte() // until the client goes
	})
	f.transport.Timeout = time.Hour
	f.finished("a", outcomes()["success"])
	stop := f.run(notifier.Options{})
	select {
	case <-reached:
	case <-f.ctx.Done():
		t.Fatal("the mail server was never called")
	}
	stop()
	f.left(1)
	tasks, err := f.dir.List(staging.Done)
	if err != nil {
		t.Fatal(err)
	}
	l, err := notifier.ReadDeliveries(tasks[0])
	if err != nil || l.List[0].State != notifier.StatePending || l.List[0].Attempts != 0 {
		t.Errorf("the record is %+v (%v)", l, err)
	}
}

func TestOutcomeThatCannotBeReadIsSetAside(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	st := f.finished("a", outcomes()["success"])
	if err := os.WriteFile(st.Path(staging.OutcomeFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.finished("b", outcomes()["success"])
	f.run(notifier.Options{})
	f.gone()
	f.mails(1)
	set, err := f.dir.List(staging.Quarantine)
	if err != nil || len(set) != 1 || set[0].Name != "a" {
		t.Errorf("quarantine holds %v (%v)", set, err)
	}
	if !strings.Contains(f.log.String(), "set a task aside") {
		t.Errorf("log says\n%s", f.log)
	}
}

func TestBrokenRecordIsBegunAnew(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	st := f.finished("a", outcomes()["success"])
	if err := os.WriteFile(st.Path(notifier.DeliveriesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.run(notifier.Options{})
	f.gone()
	want := "<" + notifier.MessageIDOf(outcomes()["success"], "ada@example.com", "example.com") + ">"
	if got := messageIDs(t, f.mails(1))[0]; got != want {
		t.Errorf("Message-ID is %s; another record makes it %s", got, want)
	}
}

func TestSomeFinishedTasksAreKept(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	for i := range 4 {
		f.finished(fmt.Sprint("task-", i), outcomes()["success"])
	}
	stop := f.run(notifier.Options{Keep: 2})
	f.mails(4)
	f.left(2)
	stop()
	// Kept ones are not told again, and go when newer ones come.
	f.finished("task-9", outcomes()["success"])
	f.run(notifier.Options{Keep: 2})
	f.mails(5)
	f.left(2)
	tasks, err := f.dir.List(staging.Done)
	if err != nil || len(tasks) != 2 || tasks[0].Name != "task-3" || tasks[1].Name != "task-9" {
		t.Errorf("kept %v (%v)", tasks, err)
	}
	for _, kept := range tasks {
		if _, err := kept.Outcome(); err != nil {
			t.Error(err)
		}
	}
}

func TestBackoffGrowsToItsLimit(t *testing.T) {
	for _, c := range []struct {
		n    int
		want time.Duration
	}{{1, 5 * time.Second}, {2, 10 * time.Second}, {5, 80 * time.Second}, {9, notifier.BackoffMax}, {1000, notifier.BackoffMax}} {
		for range 50 {
			if got := notifier.Backoff(c.n, notifier.BackoffMax); got < c.want*4/5 || got > c.want*6/5 {
				t.Errorf("after %d failures %s; want about %s", c.n, got, c.want)
			}
		}
	}
}

// The history gets a task once its messages are settled, with its outcome in place. That
// it cannot keep it keeps no directory from being shredded.
func TestHistoryGetsWhatIsSettled(t *testing.T) {
	f := newFixture(t, "ada@example.com")
	f.finished("a", outcomes()["success"])
	given := make(chan *staging.Task, 10)
	f.run(notifier.Options{History: func(st *staging.Task) error {
		if _, err := st.Outcome(); err != nil {
			t.Error(err)
		}
		given <- st
		return errors.New("no space left on device")
	}})
	f.gone()
	f.mails(1)
	if n := len(given); n != 1 {
		t.Errorf("the history got the task %d times", n)
	}
	f.log.Await(f.ctx, t, "the history lacks this task")
}
