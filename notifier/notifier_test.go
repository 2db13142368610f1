package notifier

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/mail"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestEveryActiveAdminGetsOneMail(t *testing.T) {
	b := newBench(t, "ada@example.com", "bob@example.com", "Carl <carl@example.com>", "ADA@example.com", "dora@example.com", "eve@example.com")
	b.finished("a", outcomes()["success"])
	b.run(Options{})
	b.gone()
	mails := b.mails(5)
	if got := recipients(mails); !slices.Equal(got, []string{"ada@example.com", "bob@example.com", "carl@example.com", "dora@example.com", "eve@example.com"}) {
		t.Errorf("mails went to %q", got)
	}
	ids := messageIDs(t, mails)
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 5 {
		t.Errorf("Message-IDs repeat: %q", ids)
	}
	// A later outcome is noticed.
	b.finished("b", outcomes()["failed"])
	b.gone()
	b.mails(10)
}

func TestRetryAndFinalityAreEachRecipientsOwn(t *testing.T) {
	b := newBench(t, "busy@example.com", "gone@example.com", "fine@example.com", "not an address", "slow@example.com")
	b.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "busy@example.com", Code: 451, Times: 3})
	b.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "gone@example.com", Code: 550})
	b.server.Refuse(testenv.Refusal{Verb: "DATA", Address: "slow@example.com", Code: 452, Times: 2})
	b.finished("a", outcomes()["success"])
	b.run(Options{})
	b.gone()
	if got := recipients(b.mails(3)); !slices.Equal(got, []string{"busy@example.com", "fine@example.com", "slow@example.com"}) {
		t.Errorf("mails went to %q", got)
	}
	if n := b.server.Refused(); n != 3+1+2 {
		t.Errorf("%d refusals: a final one was tried again, or a passing one was not", n)
	}
	for _, want := range []string{
		`level=ERROR msg="mail not sent" component=notifier task=a state=done recipient=gone@example.com`,
		`level=ERROR msg="cannot mail an active administrator`,
	} {
		if !strings.Contains(b.log.String(), want) {
			t.Errorf("the log does not say %s\n%s", want, b.log)
		}
	}
}

func TestDefect23SettingsAreReadAtEachSend(t *testing.T) {
	b := newBench(t, "ada@example.com")
	wrong := scripted(t, hangUp)
	b.book.settings = wrong
	b.finished("a", outcomes()["success"])
	b.run(Options{})
	b.log.await(b.ctx, t, "mail not sent yet")
	b.book.set(func(book *memoryBook) { book.settings = b.settings() })
	b.gone()
	b.mails(1)
}

func TestDatabaseThatIsDownDelaysMail(t *testing.T) {
	b := newBench(t, "ada@example.com")
	b.book.err, b.book.failures = errors.New("connection refused"), 3
	b.finished("a", outcomes()["success"])
	b.server.Refuse(testenv.Refusal{Verb: "RCPT", Code: 451, Times: 1})
	b.run(Options{})
	if err := b.server.AwaitRefused(b.ctx, 1); err != nil {
		t.Fatal(err)
	}
	b.gone()
	b.mails(1)
	if n := strings.Count(b.log.String(), "connection refused"); n != 3 {
		t.Errorf("%d of 3 failures were logged\n%s", n, b.log)
	}
}

// A notifier that cannot find out whom to tell says so where its readiness is
// asked for, and takes it back.
func TestReadinessFollowsTheDatabase(t *testing.T) {
	b := newBench(t, "ada@example.com")
	b.book.err, b.book.failures = errors.New("connection refused"), 3
	b.finished("a", outcomes()["success"])
	var mu sync.Mutex
	var said []string
	stop := b.run(Options{Ready: func(reason string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, reason)
	}})
	b.gone()
	stop()
	const why = "prepare mail: read mail settings: connection refused"
	said = slices.Compact(said)
	if !slices.Equal(said, []string{"", why, ""}) {
		t.Errorf("said %q", said)
	}
}

func TestNoServerIsSaidOnceAndIsNoError(t *testing.T) {
	b := newBench(t, "ada@example.com")
	b.book.settings = Settings{From: "agent@example.com"}
	for _, name := range []string{"a", "b", "c"} {
		b.finished(name, outcomes()["success"])
	}
	b.run(Options{})
	b.gone()
	log := b.log.String()
	if n := strings.Count(log, "no mail is sent: set smtp_host"); n != 1 || strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
		t.Errorf("said %d times:\n%s", n, log)
	}
	// The next task sees that mail was switched on.
	b.book.set(func(book *memoryBook) { book.settings = b.settings() })
	b.finished("d", outcomes()["success"])
	b.gone()
	b.mails(1)
}

func TestNobodyToTell(t *testing.T) {
	b := newBench(t)
	b.finished("a", outcomes()["success"])
	b.finished("b", outcomes()["success"])
	b.run(Options{})
	b.gone()
	if n := strings.Count(b.log.String(), "no active administrator"); n != 1 {
		t.Errorf("said %d times:\n%s", n, b.log)
	}
	b.mails(0)
}

func TestMailSwitchedOffMeanwhileIsDropped(t *testing.T) {
	b := newBench(t, "ada@example.com")
	b.book.settings = scripted(t, hangUp)
	b.finished("a", outcomes()["success"])
	b.run(Options{})
	b.log.await(b.ctx, t, "mail not sent yet")
	b.book.set(func(book *memoryBook) { book.settings = Settings{} })
	b.gone()
	if log := b.log.String(); strings.Count(log, "set smtp_host") != 1 || strings.Contains(log, "level=ERROR") {
		t.Errorf("log says\n%s", log)
	}
}

func TestOldMailIsGivenUp(t *testing.T) {
	b := newBench(t, "ada@example.com", "bob@example.com")
	b.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "bob@example.com", Code: 451})
	b.finished("a", outcomes()["success"])
	var mu sync.Mutex
	var ahead time.Duration
	b.run(Options{MaxAge: time.Hour}, func(n *Notifier) {
		n.now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(ahead)
		}
	})
	if err := b.server.AwaitRefused(b.ctx, 3); err != nil {
		t.Fatal(err)
	}
	b.left(1)
	mu.Lock()
	ahead = 61 * time.Minute
	mu.Unlock()
	b.gone()
	b.mails(1)
	if log := b.log.String(); !strings.Contains(log, "gave up after 1h0m0s") {
		t.Errorf("log says\n%s", log)
	}
}

// A mail that got too old while the agent was down is tried once more before
// it is given up.
func TestOldMailIsTriedOnceMoreAfterALongDowntime(t *testing.T) {
	for name, refused := range map[string]bool{"taken": false, "refused": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, "ada@example.com")
			b.server.Refuse(testenv.Refusal{Verb: "RCPT", Code: 451, Times: 1})
			b.finished("a", outcomes()["success"])
			stop := b.run(Options{}, func(n *Notifier) {
				n.backoff = func(int, time.Duration) time.Duration { return time.Hour }
			})
			b.log.await(b.ctx, t, "mail not sent yet")
			stop()
			if refused {
				b.server.Refuse(testenv.Refusal{Verb: "RCPT", Code: 451})
			}
			b.run(Options{MaxAge: time.Hour}, func(n *Notifier) {
				n.now = func() time.Time { return time.Now().Add(1000 * time.Hour) }
			})
			b.gone()
			if n := b.server.Refused(); refused && n != 2 {
				t.Errorf("%d attempts were refused, want one of each start", n)
			}
			if !refused {
				b.mails(1)
			}
			if gaveUp := strings.Contains(b.log.String(), "gave up after 1h0m0s and 2 attempts"); gaveUp != refused {
				t.Errorf("the log says\n%s", b.log)
			}
		})
	}
}

// What becomes of each mail is told elsewhere, too.
func TestOutboxIsToldOfEveryMail(t *testing.T) {
	b := newBench(t, "ada@example.com", "bob@example.com", "not an address")
	b.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "ada@example.com", Code: 451, Times: 1})
	b.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "bob@example.com", Code: 550})
	o := outcomes()["success"]
	b.finished("a", o)
	var mu sync.Mutex
	said, settled := map[string][]string{}, 0
	stop := b.run(Options{
		Outbox: func(id task.ID, d Delivery) {
			mu.Lock()
			defer mu.Unlock()
			if id != o.TaskID {
				t.Errorf("a mail about task %s", id)
			}
			said[d.Address] = append(said[d.Address], fmt.Sprint(d.State, d.Attempts))
		},
		Settled: func() { mu.Lock(); settled++; mu.Unlock() },
	})
	b.gone()
	stop()
	want := map[string][]string{
		"ada@example.com": {"pending0", "pending1", "sent2"},
		"bob@example.com": {"pending0", "failed0"}, "not an address": {"failed0"},
	}
	if !maps.EqualFunc(said, want, slices.Equal) || settled != 1 {
		t.Errorf("said %v; settled %d times", said, settled)
	}
}

// A crash after the server took a mail and before that was recorded repeats
// the mail, and only that one, under the same Message-ID.
func TestRepeatAfterACrashHasTheSameMessageID(t *testing.T) {
	b := newBench(t, "ada@example.com", "bob@example.com")
	o := outcomes()["failed"]
	b.server.Refuse(testenv.Refusal{Verb: "RCPT", Address: "bob@example.com", Code: 451})
	st := b.finished("a", o)
	stop := b.run(Options{})
	b.mails(1)
	if err := b.server.AwaitRefused(b.ctx, 1); err != nil {
		t.Fatal(err)
	}
	stop()
	before, err := os.ReadFile(st.Path(DeliveriesFile))
	if err != nil {
		t.Fatal(err)
	}
	l, err := ReadLedger(st)
	if err != nil || l.Deliveries[0].State != StateSent || l.Deliveries[1].State != StatePending {
		t.Fatalf("the record is %+v (%v)", l, err)
	}
	if err := st.Discard(); err != nil {
		t.Fatal(err)
	}

	for range 2 { // the second time is after the crash
		st = b.finished("a", o)
		if err := os.WriteFile(st.Path(DeliveriesFile), before, 0o600); err != nil {
			t.Fatal(err)
		}
		b.restartServer()
		b.book.set(func(book *memoryBook) {
			book.settings = b.settings()
			book.settings.From = "other@example.org" // a new sender makes no new Message-ID
			book.admins = nil                        // nor does a changed table change whom this outcome is told to
		})
		stop = b.run(Options{})
		b.gone()
		stop()
		mails := b.mails(1)
		if got := recipients(mails); !slices.Equal(got, []string{"bob@example.com"}) {
			t.Errorf("mails went to %q", got)
		}
		if id := messageIDs(t, mails)[0]; id != "<"+l.Deliveries[1].MessageID+">" {
			t.Errorf("Message-ID is %s, was %s", id, l.Deliveries[1].MessageID)
		}
	}
}

func TestStopIsPromptWithASilentServer(t *testing.T) {
	b := newBench(t, "ada@example.com")
	reached := make(chan struct{})
	b.book.settings = scripted(t, func(_ net.Conn, r *bufio.Reader) {
		close(reached)
		_, _ = r.ReadByte() // until the client goes
	})
	b.finished("a", outcomes()["success"])
	stop := b.run(Options{Transport: Transport{Timeout: time.Hour}})
	select {
	case <-reached:
	case <-b.ctx.Done():
		t.Fatal("the mail server was never called")
	}
	stop()
	b.left(1)
	tasks, err := b.dir.List(staging.Done)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ReadLedger(tasks[0])
	if err != nil || l.Deliveries[0].State != StatePending || l.Deliveries[0].Attempts != 0 {
		t.Errorf("the record is %+v (%v)", l, err)
	}
}

func TestOutcomeThatCannotBeReadIsSetAside(t *testing.T) {
	b := newBench(t, "ada@example.com")
	st := b.finished("a", outcomes()["success"])
	if err := os.WriteFile(st.Path(staging.OutcomeFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.finished("b", outcomes()["success"])
	b.run(Options{})
	b.gone()
	b.mails(1)
	set, err := b.dir.List(staging.Quarantine)
	if err != nil || len(set) != 1 || set[0].Name != "a" {
		t.Errorf("quarantine holds %v (%v)", set, err)
	}
	if !strings.Contains(b.log.String(), "set a task aside") {
		t.Errorf("log says\n%s", b.log)
	}
}

func TestBrokenRecordIsBegunAnew(t *testing.T) {
	b := newBench(t, "ada@example.com")
	st := b.finished("a", outcomes()["success"])
	if err := os.WriteFile(st.Path(DeliveriesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.run(Options{})
	b.gone()
	want := "<" + messageID(outcomes()["success"], "ada@example.com", &mail.Address{Address: "agent@example.com"}) + ">"
	if got := messageIDs(t, b.mails(1))[0]; got != want {
		t.Errorf("Message-ID is %s; another record makes it %s", got, want)
	}
}

func TestSomeSettledTasksAreKept(t *testing.T) {
	b := newBench(t, "ada@example.com")
	for i := range 4 {
		b.finished(fmt.Sprint("task-", i), outcomes()["success"])
	}
	stop := b.run(Options{Keep: 2})
	b.mails(4)
	b.left(2)
	stop()
	// Kept ones are not told again, and go when newer ones come.
	b.finished("task-9", outcomes()["success"])
	b.run(Options{Keep: 2})
	b.mails(5)
	b.left(2)
	tasks, err := b.dir.List(staging.Done)
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
	}{{1, 5 * time.Second}, {2, 10 * time.Second}, {5, 80 * time.Second}, {9, backoffMax}, {1000, backoffMax}} {
		for range 50 {
			if got := backoff(c.n, backoffMax); got < c.want*4/5 || got > c.want*6/5 {
				t.Errorf("after %d failures %s; want about %s", c.n, got, c.want)
			}
		}
	}
}
