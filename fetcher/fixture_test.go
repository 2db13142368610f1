package fetcher

import (
	"bytes"
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

// eventTimeout is how long an event may take before the test gives up waiting.
const eventTimeout = 10 * time.Minute

// fixture is a fetcher between a real database and a real staging directory.
type fixture struct {
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
	reason string // what Run last said about readiness
	said   bool   // whether it said anything

	listenRetry time.Duration // 0 is the fetcher's own

	dir   *staging.Dir
	stop  context.CancelFunc
	ended chan error
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	fx := &fixture{t: t, raw: testenv.Database(t), staging: filepath.Join(t.TempDir(), "staging")}
	fx.proxy, fx.through = testenv.NewPostgresProxy(t, fx.raw)
	fx.connect(0)
	fx.open()
	var err error
	if fx.reader, err = staging.Open(fx.staging, staging.Reader); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fx.reader.Close() })
	fx.opts = Options{
		Target: taskdb.Target{Deployment: task.DeploymentDocker, Name: "wrktalk"},
		Lease:  time.Hour, Poll: time.Hour, Heartbeat: time.Second, Owner: "test",
		Limits: unpack.Limits{Bytes: 1 << 20, Entries: 100, Depth: 10, Ratio: 1000},
		Log:    slog.New(slog.NewJSONHandler(&logWriter{fx}, nil)),
	}
	t.Cleanup(func() {
		fx.stopAndWait()
		if t.Failed() {
			fx.mu.Lock()
			defer fx.mu.Unlock()
			t.Logf("the fetcher's log:\n%s", fx.log.String())
		}
	})
	return fx
}

func (fx *fixture) connect(most int32) {
	fx.t.Helper()
	var err error
	if fx.db, err = taskdb.Open(fx.t.Context(), taskdb.Options{ConnString: fx.through, AppName: "fetcher", MaxConns: most}); err != nil {
		fx.t.Fatal(err)
	}
	fx.t.Cleanup(fx.db.Close)
}

func (fx *fixture) useOneConnection() { fx.connect(1) }

type logWriter struct{ fx *fixture }

func (w *logWriter) Write(p []byte) (int, error) {
	w.fx.mu.Lock()
	defer w.fx.mu.Unlock()
	return w.fx.log.Write(p)
}

func (fx *fixture) open() {
	fx.t.Helper()
	if fx.dir != nil {
		return
	}
	var err error
	if fx.dir, err = staging.Open(fx.staging, staging.Fetcher); err != nil {
		fx.t.Fatal(err)
	}
}

// start starts the fetcher, which gives what it stages no time once it is told
// to stop.
func (fx *fixture) start() {
	fx.t.Helper()
	fx.open()
	var ctx context.Context
	ctx, fx.stop = context.WithCancel(context.Background())
	fx.ended = make(chan error, 1)
	f := New(fx.db, fx.dir, fx.opts)
	if fx.listenRetry > 0 {
		f.listenRetry = fx.listenRetry
	}
	go func() {
		fx.ended <- f.Run(ctx, 0, func(reason string) {
			fx.mu.Lock()
			defer fx.mu.Unlock()
			fx.reason, fx.said = reason, true
		})
	}()
}

// stopAndWait stops the fetcher, if it runs, waits for it and lets go of the directory.
func (fx *fixture) stopAndWait() {
	fx.t.Helper()
	if fx.ended != nil {
		fx.stop()
		select {
		case err := <-fx.ended:
			if err != nil {
				fx.t.Errorf("Run: %v", err)
			}
		case <-time.After(eventTimeout):
			fx.t.Error("the fetcher does not end")
		}
		fx.ended = nil
	}
	if fx.dir != nil {
		fx.dir.Close()
		fx.dir = nil
	}
}

func (fx *fixture) eventually(what string, done func() bool) {
	fx.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(eventTimeout); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			fx.t.Fatalf("%s: did not happen", what)
		}
	}
}

func (fx *fixture) list(s staging.State) []*staging.Task {
	fx.t.Helper()
	tasks, err := fx.reader.List(s)
	if err != nil {
		fx.t.Fatal(err)
	}
	return tasks
}

// awaitReady waits for the one task in ready and returns it with its manifest.
func (fx *fixture) awaitReady() (*staging.Task, *staging.Manifest) {
	fx.t.Helper()
	w := fx.reader.Watch(time.Second, staging.Ready)
	defer w.Stop()
	deadline := time.After(eventTimeout)
	for {
		select {
		case <-w.Hints():
		case <-deadline:
			fx.t.Fatal("nothing was staged")
		}
		if tasks := fx.list(staging.Ready); len(tasks) > 0 {
			m, err := tasks[0].Manifest()
			if err != nil {
				fx.t.Fatal(err)
			}
			return tasks[0], m
		}
	}
}

// content is what a test's release holds.
var content = map[string]string{"compose.yaml": "services: {}\n", "site/index.html": "hello"}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// addArtifact stores an artifact and returns its id.
func (fx *fixture) addArtifact(version, chart string, data []byte, digest string) string {
	fx.t.Helper()
	return fx.raw.SQL(fx.t, fmt.Sprintf(`insert into release_artifact (release_version, chart_type, artifact_data, env_data, sha256)
		values ('%s', '%s', '\x%x', 'API_TOKEN=secret', '%s') returning id`, version, chart, data, digest))
}

// addRelease stores a release that can be staged.
func (fx *fixture) addRelease(version string) string {
	data := testenv.Tarball(fx.t, content)
	return fx.addArtifact(version, "compose", data, sum(data))
}

// addTask adds a task; artifact may be "".
func (fx *fixture) addTask(kind, artifact string) task.ID {
	fx.t.Helper()
	id := "null"
	if artifact != "" {
		id = "'" + artifact + "'"
	}
	return task.ID(fx.raw.SQL(fx.t, fmt.Sprintf(`insert into agent_task (type, release_artifact_id) values ('%s', %s) returning id`, kind, id)))
}

func (fx *fixture) status(id task.ID) string {
	fx.t.Helper()
	return fx.raw.SQL(fx.t, fmt.Sprintf(`select status from agent_task where id = '%s'`, id))
}

func (fx *fixture) read(t *staging.Task, name string) string {
	fx.t.Helper()
	data, err := os.ReadFile(t.Path(name))
	if err != nil {
		fx.t.Fatal(err)
	}
	return string(data)
}
