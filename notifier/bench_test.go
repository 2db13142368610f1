package notifier

import (
	"bytes"
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
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// memoryBook is a Book whose pages a test can turn.
type memoryBook struct {
	mu       sync.Mutex
	settings Settings
	admins   []Recipient
	err      error
	failures int // answered with err
}

func (b *memoryBook) set(change func(*memoryBook)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b)
}

func (b *memoryBook) MailSettings(context.Context) (Settings, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures != 0 {
		b.failures--
		return Settings{}, b.err
	}
	return b.settings, nil
}

func (b *memoryBook) ActiveAdmins(context.Context) ([]Recipient, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.admins), nil
}

// bench is a staging directory, a mail server, and what the notifier under
// test is given.
type bench struct {
	t      *testing.T
	ctx    context.Context // bounds every waiting
	path   string
	dir    *staging.Dir
	server *testenv.SMTP
	book   *memoryBook
	log    *logBuffer
}

func newBench(t *testing.T, admins ...string) *bench {
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "staging"), log: &logBuffer{changed: make(chan struct{})}}
	var cancel context.CancelFunc
	b.ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	b.server = testenv.NewSMTP(t, testenv.SMTPOptions{})
	b.book = &memoryBook{settings: b.settings()}
	for _, a := range admins {
		b.book.admins = append(b.book.admins, Recipient{Address: a})
	}
	b.open()
	t.Cleanup(func() { _ = b.dir.Close() })
	return b
}

func (b *bench) settings() Settings {
	return Settings{Host: b.server.Host, Port: b.server.Port, From: "agent@example.com"}
}

func (b *bench) open() {
	b.t.Helper()
	var err error
	if b.dir, err = staging.Open(b.path, staging.Notifier); err != nil {
		b.t.Fatal(err)
	}
}

// finished puts a task with an outcome where the runner leaves it.
func (b *bench) finished(name string, o task.Outcome) *staging.Task {
	b.t.Helper()
	draft, err := b.dir.Create(name)
	if err != nil {
		b.t.Fatal(err)
	}
	st, err := draft.Publish(staging.Manifest{TaskID: o.TaskID, Kind: o.Kind, Token: o.Token})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, step := range []func() error{st.Take, func() error { return st.SetOutcome(o) }, st.Finish} {
		if err := step(); err != nil {
			b.t.Fatal(err)
		}
	}
	return st
}

// run starts a notifier with short delays; the returned function stops it and
// waits for it. It also ends with the test.
func (b *bench) run(opts Options, change ...func(*Notifier)) (stop func()) {
	b.t.Helper()
	opts.Origin, opts.Log = origin, slog.New(slog.NewTextHandler(b.log, nil)).With("component", "notifier")
	n := New(b.dir, b.book, opts)
	n.backoff = func(int, time.Duration) time.Duration { return time.Millisecond }
	for _, c := range change {
		c(n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Error(err)
		}
	})
	b.t.Cleanup(stop)
	return stop
}

// gone waits until nothing is left of any task.
func (b *bench) gone() {
	b.t.Helper()
	b.left(0)
}

// left waits until n tasks lie in done and none in the trash.
func (b *bench) left(n int) {
	b.t.Helper()
	w := b.dir.Watch(time.Second, staging.Done, staging.Trash)
	defer w.Stop()
	for {
		done, err := b.dir.List(staging.Done)
		if err != nil {
			b.t.Fatal(err)
		}
		trash, err := b.dir.List(staging.Trash)
		if err != nil {
			b.t.Fatal(err)
		}
		if len(done) == n && len(trash) == 0 {
			return
		}
		select {
		case <-w.Hints():
		case <-b.ctx.Done():
			b.t.Fatalf("%d tasks in done, %d in trash", len(done), len(trash))
		}
	}
}

func (b *bench) mails(n int) []testenv.Mail {
	b.t.Helper()
	mails, err := b.server.Await(b.ctx, n)
	if err != nil {
		b.t.Fatal(err)
	}
	if len(mails) != n {
		b.t.Fatalf("got %d mails, want %d", len(mails), n)
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

// logBuffer keeps what was logged and tells when more was.
type logBuffer struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) await(ctx context.Context, t *testing.T, text string) {
	t.Helper()
	for {
		l.mu.Lock()
		found, changed := strings.Contains(l.buf.String(), text), l.changed
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("nobody logged %q", text)
		}
	}
}

// restartServer replaces the mail server by one that refuses nothing.
func (b *bench) restartServer() { b.server = testenv.NewSMTP(b.t, testenv.SMTPOptions{}) }
