package compose

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/client"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// line leads from the engine's socket to one of its own, and can be cut.
type line struct {
	t        *testing.T
	path     string // of its own socket
	engine   string // network and address
	listener net.Listener
	serving  sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]bool // nil while cut
}

// newLine puts a line in front of the engine, for the length of the test.
func newLine(t *testing.T) *line {
	t.Helper()
	host, err := client.ParseHostURL(client.DefaultDockerHost)
	if env := os.Getenv("DOCKER_HOST"); env != "" {
		host, err = client.ParseHostURL(env)
	}
	if err != nil || host.Scheme != "unix" {
		t.Skipf("the engine is not at a unix socket: %v, %v", host, err)
	}
	dir, err := os.MkdirTemp("", "line") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	l := &line{t: t, path: filepath.Join(dir, "docker.sock"), engine: host.Host}
	t.Setenv("DOCKER_HOST", "unix://"+l.path)
	l.mend()
	t.Cleanup(func() {
		l.cut()
		_ = os.RemoveAll(dir)
	})
	return l
}

// cut ends every connection, and no new one is possible: the engine is stopped.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		return
	}
	_ = l.listener.Close() // unlinks the socket
	for c := range l.open {
		_ = c.Close()
	}
	l.open = nil
	l.mu.Unlock()
	l.serving.Wait()
	l.mu.Lock()
}

// mend is the engine's start.
func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil {
		return
	}
	var err error
	if l.listener, err = net.Listen("unix", l.path); err != nil {
		l.t.Error(err)
		return
	}
	l.open = map[net.Conn]bool{}
	listener := l.listener
	l.serving.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			l.serving.Go(func() { l.serve(near) })
		}
	})
}

func (l *line) serve(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("unix", l.engine)
	if err != nil {
		return
	}
	defer far.Close()
	l.mu.Lock()
	if l.open == nil {
		l.mu.Unlock()
		return
	}
	l.open[near], l.open[far] = true, true
	l.mu.Unlock()
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // however it ends, it has ended
		_ = to.Close()
		_ = from.Close()
	}
	both.Go(func() { pass(far, near) })
	both.Go(func() { pass(near, far) })
	both.Wait()
	l.mu.Lock()
	delete(l.open, near)
	delete(l.open, far)
	l.mu.Unlock()
}

// onEvent has the fixture do what when the deployment says text, once.
func (b *fixture) onEvent(text string, what func()) {
	b.watchers = append(b.watchers, func(e task.Event) bool {
		if !strings.Contains(e.Text, text) {
			return false
		}
		what()
		return true
	})
}

// TestEngineComesLate: an engine that is being restarted when a job begins is
// waited for.
func TestEngineComesLate(t *testing.T) {
	b := newFixture(t)
	l := newLine(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	l.cut()
	b.onEvent("waiting for it", l.mend)
	b.up(one, nil)
}

// TestRecoveryThatIsRefused: half-way is never said to be unchanged.
func TestRecoveryThatIsRefused(t *testing.T) {
	b := newFixture(t)
	l := newLine(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "")}, "")
	b.up(one, nil)
	job := b.job(two, kept(one))
	job.Action = protocol.ActionRecover
	check := func(res protocol.Result, why string) {
		t.Helper()
		failsWith(t, res, "died while it brought up release 2.0", why)
		if !res.Changed || res.Serving != "" || res.Restored || !strings.Contains(res.Message, "died half-way, and what serves now is not known: look at the host") {
			t.Errorf("%+v", res)
		}
	}
	t.Run("approval denied", func(t *testing.T) {
		b.deny = errors.New("the page cannot be shown")
		defer func() { b.deny = nil }()
		check(b.run(job), "the page cannot be shown")
	})
	t.Run("store", func(t *testing.T) {
		if err := os.Chmod(b.workdir, 0o777); err != nil {
			t.Fatal(err)
		}
		check(b.run(job), "chmod go-w")
		if err := os.Chmod(b.workdir, 0o711); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("engine", func(t *testing.T) {
		l.cut()
		defer l.mend()
		job := job
		job.RestoreTimeout = 1 // a nanosecond
		check(b.run(job), "the time to restore is up")
	})
	t.Run("engine comes late", func(t *testing.T) {
		l.cut()
		b.onEvent("waiting for it", l.mend)
		job := job
		job.Timeout = 1 // the time to restore counts
		if res := b.run(job); !res.Restored || res.Serving != "1.0" || !res.Changed {
			t.Errorf("%+v", res)
		}
	})
}

// TestEngineRestarts: an engine that goes away in the middle of a run, and comes
// back, fails neither a release nor its restoration.
func TestEngineRestarts(t *testing.T) {
	b := newFixture(t)
	l := newLine(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "")}, "")
	bad := b.release("3.0", map[string]string{"compose.yaml": b.web("3.0", "    command: [crash]\n")}, "")
	// restart ends the engine when the deployment says text, and starts it when it
	// says that it waits.
	restart := func(text string) {
		b.onEvent(text, l.cut)
		b.onEvent("waiting for it", l.mend)
	}
	used := func() {
		t.Helper()
		if len(b.watchers) != 0 {
			t.Error("the deployment did not say that it waits for the engine")
		}
	}
	for _, text := range []string{"checking release", "bringing up release", "waiting until"} {
		t.Run(text, func(t *testing.T) {
			b.t = t
			restart(text)
			b.up(one, nil)
			used()
			restart(text)
			b.up(two, kept(one))
			used()
			if got := b.ask("web", "/"); got != "2.0" {
				t.Errorf("web answers %q", got)
			}
		})
	}
	// In the middle of what the library does.
	for _, text := range []string{" Recreate\n", " Recreated\n", " Starting\n"} {
		t.Run(strings.TrimSpace(text), func(t *testing.T) {
			b.t = t
			b.onOutput = func(said string) {
				if strings.HasSuffix(said, text) {
					b.onOutput = nil
					l.cut()
				}
			}
			b.onEvent("waiting for it", l.mend)
			b.up(one, kept(two))
			used()
			b.up(two, kept(one))
		})
	}
	t.Run("restoring", func(t *testing.T) {
		b.t = t
		restart("restoring release")
		res := b.run(b.job(bad, kept(two)))
		used()
		if !res.Restored || b.ask("web", "/") != "2.0" {
			t.Errorf("not restored: %+v", res)
		}
	})
	t.Run("removing", func(t *testing.T) {
		b := newFixture(t)
		b.onEvent("removing release", l.cut)
		b.onEvent("waiting for it", l.mend)
		bad := b.release("3.0", map[string]string{"compose.yaml": b.web("3.0", "    command: [crash]\n")}, "")
		res := b.run(b.job(bad, nil))
		if b.containers() != 0 || len(b.watchers) != 0 {
			t.Errorf("not removed: %+v", res)
		}
	})
	t.Run("for good", func(t *testing.T) {
		b.t = t
		b.onEvent("bringing up release", l.cut)
		job := b.job(one, kept(two))
		job.Timeout, job.RestoreTimeout = 3*time.Second, time.Second
		res := b.run(job)
		l.mend()
		if res.Succeeded || res.Restored {
			t.Errorf("%+v", res)
		}
	})
}
