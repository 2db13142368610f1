package runner

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// patience is how long an event may take before it is taken never to come.
const patience = 10 * time.Minute

var target = taskdb.Target{Deployment: task.DeploymentDocker, Name: "wrktalk"}

// fixture is a runner between a real database and a real staging directory, with
// a stand-in for wrktalk-deploy.
type fixture struct {
	t       *testing.T
	raw     *testenv.DB
	proxy   *testenv.Proxy
	db      *taskdb.DB
	staging string
	fetcher *staging.Dir
	fakeDir string // directory of the stand-in
	page    string // what the maintenance commands wrote, a line each
	opts    Options

	mu  sync.Mutex
	log bytes.Buffer

	dir                         *staging.Dir
	idle, stop, interrupt, kill context.CancelFunc
	ended                       chan error
	hangMargin, exitTimeout     time.Duration
	pageTimeout                 time.Duration // 0 is the runner's own

	// unrecorded are claims that have ended, which the fetcher leaves out.
	unrecorded map[task.ID]task.Token
}

func newFixture(t *testing.T, mode, recoverMode string) *fixture {
	t.Helper()
	b := &fixture{t: t, raw: testenv.Database(t), staging: filepath.Join(t.TempDir(), "staging"), fakeDir: t.TempDir(), hangMargin: time.Hour, exitTimeout: time.Hour, unrecorded: map[task.ID]task.Token{}}
	var through string
	b.proxy, through = testenv.NewPostgresProxy(t, b.raw)
	var err error
	if b.db, err = taskdb.Open(t.Context(), taskdb.Options{ConnString: through, AppName: "runner"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.db.Close)
	if b.fetcher, err = staging.Open(b.staging, staging.Fetcher); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.fetcher.Close() })
	if err := syscall.Mkfifo(filepath.Join(b.fakeDir, "go"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.page = filepath.Join(b.fakeDir, "page")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b.opts = Options{
		Target: target, Program: self,
		Env: []string{
			"FAKE_DIR=" + b.fakeDir, "FAKE_DEPLOY=" + mode, "FAKE_RECOVER=" + recoverMode,
			"GORACE=atexit_sleep_ms=0", // else a stand-in built with -race sleeps as it exits
		},
		Heartbeat: 300 * time.Millisecond, Lease: time.Hour, Rescan: time.Hour, ShutdownGrace: time.Hour, MaxAttempts: 3,
		Timeout: time.Hour, RestoreTimeout: time.Hour,
		Settings:    protocol.Settings{Compose: &protocol.Compose{Project: "wrktalk"}},
		Maintenance: b.maintenance(), MaintenanceEnabled: true, MaintenanceTimeout: time.Minute,
		Log: slog.New(slog.NewJSONHandler(&logWriter{b}, nil)),
	}
	t.Cleanup(func() {
		b.halt()
		if t.Failed() {
			t.Logf("the runner's log:\n%s", b.logged())
		}
	})
	return b
}

// maintenance is the real switch, with commands that say what they did.
func (b *fixture) maintenance() *maintenance.Switch {
	b.t.Helper()
	s, err := maintenance.New(maintenance.Options{
		Handler: maintenance.HandlerCommand, EnterCommand: "echo up >> " + b.page, LeaveCommand: "echo down >> " + b.page,
		StateFile: filepath.Join(b.fakeDir, "maintenance.json"), Drain: -1, Logger: slog.New(slog.NewTextHandler(&logWriter{b}, nil)),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(s.Close)
	return s
}

type logWriter struct{ b *fixture }

func (w *logWriter) Write(p []byte) (int, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return w.b.log.Write(p)
}

func (b *fixture) logged() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.String()
}

// start starts the runner.
func (b *fixture) start() {
	b.t.Helper()
	var err error
	if b.dir, err = staging.Open(b.staging, staging.Runner); err != nil {
		b.t.Fatal(err)
	}
	var sig Signals
	sig.Kill, b.kill = context.WithCancel(context.Background())
	sig.Interrupt, b.interrupt = context.WithCancel(sig.Kill)
	sig.Stop, b.stop = context.WithCancel(sig.Interrupt)
	sig.Idle, b.idle = context.WithCancel(sig.Stop)
	b.ended = make(chan error, 1)
	r := New(b.db, b.dir, b.opts)
	r.hangMargin, r.exitTimeout = b.hangMargin, b.exitTimeout
	if b.pageTimeout > 0 {
		r.pageTimeout = b.pageTimeout
	}
	ready := make(chan struct{})
	go func() { b.ended <- r.Run(sig, func() { close(ready) }) }()
	select {
	case <-ready:
	case <-time.After(patience):
		b.t.Fatal("the runner does not get ready")
	}
}

// halt kills the runner, if it runs, and waits for it.
func (b *fixture) halt() {
	if b.dir != nil {
		b.kill()
		b.awaitEnd()
	}
}

func (b *fixture) awaitEnd() {
	b.t.Helper()
	select {
	case err := <-b.ended:
		if err != nil {
			b.t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		b.t.Errorf("the runner does not end:\n%s", b.logged())
	}
	b.dir.Close()
	b.dir = nil
}

// eventually polls what no event can be had for.
func (b *fixture) eventually(what string, done func() bool) {
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

// noted returns what the stand-in noted so far.
func (b *fixture) noted() string {
	data, _ := os.ReadFile(filepath.Join(b.fakeDir, "notes"))
	return strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", ", ")
}

func (b *fixture) awaitNote(note string) {
	b.t.Helper()
	b.eventually("the stand-in notes "+note, func() bool { return strings.Contains(b.noted(), note) })
}

// pages returns what the maintenance commands did.
func (b *fixture) pages() string {
	data, _ := os.ReadFile(b.page)
	return strings.Join(strings.Fields(string(data)), " ")
}

// letGo ends a wait of the stand-in.
func (b *fixture) letGo() {
	b.t.Helper()
	f, err := os.OpenFile(filepath.Join(b.fakeDir, "go"), os.O_WRONLY, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	f.Close()
}

const envText = "API_TOKEN=PASSWORD-0815\n"

// claimed adds a task and claims it as the fetcher does.
func (b *fixture) claimed() *taskdb.Task {
	b.t.Helper()
	// psql forks; two statements in one go.
	b.raw.SQL(b.t, `with a as (insert into release_artifact (release_version, chart_type, artifact_data, sha256)
		values ('1.0.0', 'compose', '\x00', 'x') returning id)
		insert into agent_task (type, release_artifact_id) select 'deploy', id from a`)
	c, err := b.db.Claim(b.t.Context(), target, taskdb.ClaimOptions{Lease: time.Hour, Claim: true, Except: b.unrecorded})
	if err != nil || c.Task == nil {
		b.t.Fatalf("claim returns %+v, %v", c, err)
	}
	return c.Task
}

// ready puts a claimed task into ready, and returns it with the name of its
// directory.
func (b *fixture) ready(change ...func(*staging.Manifest)) (*taskdb.Task, string) {
	b.t.Helper()
	c := b.claimed()
	m := staging.Manifest{
		TaskID: c.ID, Kind: c.Kind, Token: c.Token, ClaimedAt: time.Now().UTC(), StagedAt: time.Now().UTC(),
		Release:  staging.Release{ArtifactID: c.ArtifactID, Version: "1.0.0", ChartType: task.ChartCompose, SHA256: "x"},
		Previous: &staging.Release{ArtifactID: "old", Version: "0.9.0", ChartType: task.ChartCompose, SHA256: "y"},
	}
	d, err := b.fetcher.Create(staging.Name(m.ClaimedAt, m.Kind, "1.0.0", m.TaskID))
	if err != nil {
		b.t.Fatal(err)
	}
	root := d.Root()
	for _, err := range []error{
		d.SaveManifest(m), root.Mkdir(staging.PayloadDir, 0o700),
		root.WriteFile("payload/compose.yaml", []byte("services: {}\n"), 0o600),
		root.WriteFile(staging.EnvFile, []byte(envText), 0o600),
	} {
		if err != nil {
			b.t.Fatal(err)
		}
	}
	sum := func(s string) string {
		h := sha256.Sum256([]byte(s))
		return hex.EncodeToString(h[:])
	}
	m.Files = []staging.File{
		{Path: staging.PayloadDir, Type: staging.TypeDir, Mode: 0o700},
		{Path: "payload/compose.yaml", Type: staging.TypeFile, Mode: 0o600, Size: 13, SHA256: sum("services: {}\n")},
		{Path: staging.EnvFile, Type: staging.TypeFile, Mode: 0o600, Size: int64(len(envText)), SHA256: sum(envText)},
	}
	for _, f := range change {
		f(&m)
	}
	t, err := d.Publish(m)
	if err != nil {
		b.t.Fatal(err)
	}
	return c, t.Name
}

// where returns the state in which a task's directory lies, "" for none.
func (b *fixture) where(name string) staging.State {
	for _, s := range staging.States {
		if _, err := os.Lstat(filepath.Join(b.staging, string(s), name)); err == nil {
			return s
		}
	}
	return ""
}

func (b *fixture) awaitState(name string, s staging.State) {
	b.t.Helper()
	b.eventually(fmt.Sprintf("%s is in %q", name, s), func() bool { return b.where(name) == s })
}

// outcome waits until a task is done and returns what came of it.
func (b *fixture) outcome(name string) task.Outcome {
	b.t.Helper()
	b.awaitState(name, staging.Done)
	reader, err := staging.Open(b.staging, staging.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	defer reader.Close()
	tasks, err := reader.List(staging.Done)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, t := range tasks {
		if t.Name == name {
			o, err := t.Outcome()
			if err != nil {
				b.t.Fatal(err)
			}
			return o
		}
	}
	b.t.Fatalf("%s has gone from done", name)
	return task.Outcome{}
}

// row returns status and error of a task's row.
func (b *fixture) row(id task.ID) string {
	b.t.Helper()
	return b.raw.SQL(b.t, fmt.Sprintf(`select status, coalesce(error_message, '') from agent_task where id = '%s'`, id))
}

func (b *fixture) in(name string, state staging.State, file string) string {
	return filepath.Join(b.staging, string(state), name, file)
}

// noSecret fails when the env's secret lies anywhere in the staging directory.
func (b *fixture) noSecret() {
	b.t.Helper()
	err := filepath.WalkDir(b.staging, func(path string, e os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // being shredded
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if strings.Contains(string(data), "PASSWORD-0815") {
			b.t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		b.t.Error(err)
	}
	if strings.Contains(b.logged(), "PASSWORD-0815") {
		b.t.Error("the log holds the secret")
	}
}
