package notifier_test

import (
	"context"
	"log/slog"
	"path/filepath"
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
	"github.com/wrktalk/wrktalk-agent/notifier/smtp"
)

// memoryDB answers as the database would, and a test can change what it says.
type memoryDB struct {
	mu       sync.Mutex
	settings taskdb.MailSettings
	admins   []taskdb.Admin
	err      error
	failures int // answered with err
}

func (m *memoryDB) set(change func(*memoryDB)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

func (m *memoryDB) MailSettings(context.Context) (taskdb.MailSettings, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failures != 0 {
		m.failures--
		return taskdb.MailSettings{}, m.err
	}
	return m.settings, nil
}

func (m *memoryDB) ActiveAdmins(context.Context) ([]taskdb.Admin, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.admins), nil
}

// fixture is a staging directory, a mail server, and what the notifier under
// test is given.
type fixture struct {
	t         *testing.T
	ctx       context.Context // bounds every waiting
	path      string
	dir       *staging.Dir
	server    *testenv.SMTP
	db        *memoryDB
	transport smtp.Transport
	log       *testenv.Output
}

func newFixture(t *testing.T, admins ...string) *fixture {
	f := &fixture{t: t, path: filepath.Join(t.TempDir(), "staging"), log: &testenv.Output{}}
	var cancel context.CancelFunc
	f.ctx, cancel = context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	f.server = testenv.NewSMTP(t, testenv.SMTPOptions{})
	f.db = &memoryDB{settings: f.settings()}
	for _, a := range admins {
		f.db.admins = append(f.db.admins, taskdb.Admin{Email: a})
	}
	f.open()
	t.Cleanup(func() { _ = f.dir.Close() })
	return f
}

func (f *fixture) settings() taskdb.MailSettings {
	return taskdb.MailSettings{Host: f.server.Host, Port: f.server.Port, From: "agent@example.com"}
}

func (f *fixture) open() {
	f.t.Helper()
	var err error
	if f.dir, err = staging.Open(f.path, staging.Notifier); err != nil {
		f.t.Fatal(err)
	}
}

// finished puts a task with an outcome where the runner leaves it.
func (f *fixture) finished(name string, o task.Outcome) *staging.Task {
	f.t.Helper()
	draft, err := f.dir.Create(name)
	if err != nil {
		f.t.Fatal(err)
	}
	st, err := draft.Publish(staging.Manifest{TaskID: o.TaskID, Kind: o.Kind, Token: o.Token})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, step := range []func() error{st.Start, func() error { return st.SaveOutcome(o) }, st.Complete} {
		if err := step(); err != nil {
			f.t.Fatal(err)
		}
	}
	return st
}

// run starts a notifier with short delays; the returned function stops it and
// waits for it. It also ends with the test.
func (f *fixture) run(opts notifier.Options, change ...func(*notifier.Notifier)) (stop func()) {
	f.t.Helper()
	opts.Origin, opts.Log = origin, slog.New(slog.NewTextHandler(f.log, nil)).With("component", "notifier")
	if opts.Channels == nil {
		opts.Channels = []notifier.Registration{smtp.Register(f.db.MailSettings, f.db.ActiveAdmins, f.transport)}
	}
	n := notifier.New(f.dir, opts)
	n.SetBackoff(func(int, time.Duration) time.Duration { return time.Millisecond })
	for _, c := range change {
		c(n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			f.t.Error(err)
		}
	})
	f.t.Cleanup(stop)
	return stop
}

// gone waits until nothing is left of any task.
func (f *fixture) gone() {
	f.t.Helper()
	f.left(0)
}

// left waits until n tasks lie in done and none in the trash.
func (f *fixture) left(n int) {
	f.t.Helper()
	w := f.dir.Watch(time.Second, staging.Done, staging.Trash)
	defer w.Stop()
	for {
		done, err := f.dir.List(staging.Done)
		if err != nil {
			f.t.Fatal(err)
		}
		trash, err := f.dir.List(staging.Trash)
		if err != nil {
			f.t.Fatal(err)
		}
		if len(done) == n && len(trash) == 0 {
			return
		}
		select {
		case <-w.Hints():
		case <-f.ctx.Done():
			f.t.Fatalf("%d tasks in done, %d in trash", len(done), len(trash))
		}
	}
}

func (f *fixture) mails(n int) []testenv.Mail {
	f.t.Helper()
	mails, err := f.server.Await(f.ctx, n)
	if err != nil {
		f.t.Fatal(err)
	}
	if len(mails) != n {
		f.t.Fatalf("got %d mails, want %d", len(mails), n)
	}
	return mails
}

func recipients(mails []testenv.Mail) []string {
	var to []string
	for _, m := range mails {
		to = append(to, strings.Join(m.To, "+"))
	}
	slices.Sort(to)
	return to
}

func messageIDs(t *testing.T, mails []testenv.Mail) []string {
	t.Helper()
	var ids []string
	for _, m := range mails {
		ids = append(ids, parse(t, m.Raw).header.Get("Message-Id"))
	}
	return ids
}

// restartServer replaces the mail server by one that refuses nothing.
func (f *fixture) restartServer() { f.server = testenv.NewSMTP(f.t, testenv.SMTPOptions{}) }
