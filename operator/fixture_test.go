package operator

import (
	"bytes"
	"io/fs"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// env is a client of a Docker agent that does not run, with its database and
// its staging directory.
type env struct {
	*Client
	t   *testing.T
	raw *testenv.DB
	dir *staging.Dir
}

func newEnv(t *testing.T) *env {
	t.Helper()
	e := &env{t: t, raw: testenv.Database(t)}
	db, err := taskdb.Open(t.Context(), taskdb.Options{ConnString: e.raw.ConnString})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	path := t.TempDir()
	if e.dir, err = staging.Open(path, staging.Fetcher); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.dir.Close() })
	e.Client = &Client{
		DB: db, Target: taskdb.Target{Deployment: task.DeploymentDocker, Name: "wrktalk"}, StagingDir: path,
		ReadMail:    func(*staging.Task) (*Mail, error) { return nil, fs.ErrNotExist },
		MaxAttempts: 3, PollInterval: 30 * time.Second, Heartbeat: time.Minute, Lease: 5 * time.Minute,
	}
	return e
}

// newTask stores a release of its own and a task that deploys it.
func (e *env) newTask(version string, at *time.Time) task.ID {
	e.t.Helper()
	artifact, err := e.DB.Push(e.t.Context(), taskdb.NewArtifact{
		Version: version, ChartType: task.ChartCompose, Size: 4, Data: bytes.NewReader([]byte("data")),
	})
	if err != nil {
		e.t.Fatal(err)
	}
	id, err := e.DB.AddTask(e.t.Context(), taskdb.NewTask{Kind: task.KindDeploy, ArtifactID: &artifact, At: at})
	if err != nil {
		e.t.Fatal(err)
	}
	return id
}

// claim takes the next task, as an agent does.
func (e *env) claim() *taskdb.Task {
	e.t.Helper()
	c, err := e.DB.Claim(e.t.Context(), e.Target, taskdb.ClaimOptions{Lease: time.Hour, Claim: true, Owner: "elsewhere"})
	if err != nil || c.Task == nil {
		e.t.Fatalf("claimed %+v, %v", c, err)
	}
	return c.Task
}

// publish puts the directory of a claimed task into ready.
func (e *env) publish(c *taskdb.Task) *staging.Task {
	e.t.Helper()
	m := staging.Manifest{TaskID: c.ID, Kind: c.Kind, Token: c.Token}
	draft, err := e.dir.Create(staging.Name(time.Now(), m.Kind, c.Version, c.ID))
	if err != nil {
		e.t.Fatal(err)
	}
	ready, err := draft.Publish(m)
	if err != nil {
		e.t.Fatal(err)
	}
	return ready
}

func (e *env) status() *Status {
	e.t.Helper()
	s, err := e.Status(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	return s
}
