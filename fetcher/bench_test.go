package fetcher

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/fetcher/unpack"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// patience is how long an event may take before it is taken never to come.
const patience = time.Minute

// bench is a fetcher between a real database and a real staging directory.
type bench struct {
	t       *testing.T
	raw     *testenv.DB
	proxy   *testenv.Proxy
	through string // connection string that leads through proxy
	db      *taskdb.DB
	staging string
	reader  *staging.Dir
	opts    Options

	mu     sync.Mutex
	log    bytes.Buffer
	reason string // the last word on readiness
	said   bool   // whether there was one
	again  time.Duration

	dir   *staging.Dir
	stop  context.CancelFunc
	ended chan error
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, raw: testenv.Database(t), staging: filepath.Join(t.TempDir(), "staging")}
	b.proxy, b.through = testenv.NewPostgresProxy(t, b.raw)
	b.connect(0)
	b.open()
	var err error
	if b.reader, err = staging.Open(b.staging, staging.Reader); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.reader.Close() })
	b.opts = Options{
		Target: taskdb.Target{Deployment: task.DeploymentDocker, ComposeProject: "wrktalk"},
		Lease:  time.Hour, Poll: time.Hour, Heartbeat: time.Second, Owner: "test",
		Limits: unpack.Limits{Bytes: 1 << 20, Entries: 100, Depth: 10, Ratio: 1000},
		Log:    slog.New(slog.NewJSONHandler(&logWriter{b}, nil)),
	}
	t.Cleanup(func() {
		b.halt()
		if t.Failed() {
			b.mu.Lock()
			defer b.mu.Unlock()
			t.Logf("the fetcher's log:\n%s", b.log.String())
		}
	})
	return b
}

func (b *bench) connect(most int32) {
	b.t.Helper()
	var err error
	if b.db, err = taskdb.Open(b.t.Context(), taskdb.Options{ConnString: b.through, AppName: "fetcher", MaxConns: most}); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(b.db.Close)
}

func (b *bench) useOneConnection() { b.connect(1) }

type logWriter struct{ b *bench }

func (w *logWriter) Write(p []byte) (int, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return w.b.log.Write(p)
}

func (b *bench) open() {
	b.t.Helper()
	if b.dir != nil {
		return
	}
	var err error
	if b.dir, err = staging.Open(b.staging, staging.Fetcher); err != nil {
		b.t.Fatal(err)
	}
}

// start starts the fetcher, which gives what it stages no time once it is told
// to stop.
func (b *bench) start() {
	b.t.Helper()
	b.open()
	var ctx context.Context
	ctx, b.stop = context.WithCancel(context.Background())
	b.ended = make(chan error, 1)
	f := New(b.db, b.dir, b.opts)
	if b.again > 0 {
		f.listenAgain = b.again
	}
	go func() {
		b.ended <- f.Run(ctx, 0, func(reason string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.reason, b.said = reason, true
		})
	}()
}

// halt stops the fetcher, if it runs, waits for it and lets go of the directory.
func (b *bench) halt() {
	b.t.Helper()
	if b.ended != nil {
		b.stop()
		select {
		case err := <-b.ended:
			if err != nil {
				b.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			b.t.Error("the fetcher does not end")
		}
		b.ended = nil
	}
	if b.dir != nil {
		b.dir.Close()
		b.dir = nil
	}
}

func (b *bench) eventually(what string, done func() bool) {
	b.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			b.t.Fatalf("%s: it did not come to that", what)
		}
	}
}

func (b *bench) list(s staging.State) []*staging.Task {
	b.t.Helper()
	tasks, err := b.reader.List(s)
	if err != nil {
		b.t.Fatal(err)
	}
	return tasks
}

// staged waits for the one task in ready and returns it with its manifest.
func (b *bench) staged() (*staging.Task, *staging.Manifest) {
	b.t.Helper()
	w := b.reader.Watch(time.Second, staging.Ready)
	defer w.Stop()
	deadline := time.After(patience)
	for {
		select {
		case <-w.Hints():
		case <-deadline:
			b.t.Fatal("nothing was staged")
		}
		if tasks := b.list(staging.Ready); len(tasks) > 0 {
			m, err := tasks[0].Manifest()
			if err != nil {
				b.t.Fatal(err)
			}
			return tasks[0], m
		}
	}
}

// content is what a test's release holds.
var content = map[string]string{"compose.yaml": "services: {}\n", "site/index.html": "hello"}

func tarball(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	gz := gzip.NewWriter(&buf)
	tw := tar.NewWriter(gz)
	for name, text := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// release stores an artifact and returns its id.
func (b *bench) release(version, chart string, data []byte, digest string) string {
	b.t.Helper()
	return b.raw.SQL(b.t, fmt.Sprintf(`insert into release_artifact (release_version, chart_type, artifact_data, env_data, sha256)
		values ('%s', '%s', '\x%x', 'API_TOKEN=secret', '%s') returning id`, version, chart, data, digest))
}

// good stores a release that can be staged.
func (b *bench) good(version string) string {
	data := tarball(b.t, content)
	return b.release(version, "compose", data, sum(data))
}

// ask adds a task; artifact may be "".
func (b *bench) ask(kind, artifact string) task.ID {
	b.t.Helper()
	id := "null"
	if artifact != "" {
		id = "'" + artifact + "'"
	}
	return task.ID(b.raw.SQL(b.t, fmt.Sprintf(`insert into agent_task (type, release_artifact_id) values ('%s', %s) returning id`, kind, id)))
}

func (b *bench) status(id task.ID) string {
	b.t.Helper()
	return b.raw.SQL(b.t, fmt.Sprintf(`select status from agent_task where id = '%s'`, id))
}

func (b *bench) read(t *staging.Task, name string) string {
	b.t.Helper()
	data, err := os.ReadFile(t.Path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}
