package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// operatorEnv is what an operator of a Docker agent has: a database and a state
// directory, and no agent that runs.
type operatorEnv struct {
	t   *testing.T
	raw *testenv.DB
	db  *taskdb.DB
	dir string
}

func newOperatorEnv(t *testing.T) *operatorEnv {
	t.Helper()
	d := &operatorEnv{t: t, raw: testenv.Database(t), dir: t.TempDir()}
	d.db = d.open()
	return d
}

func (d *operatorEnv) open() *taskdb.DB {
	d.t.Helper()
	db, err := taskdb.Open(d.t.Context(), taskdb.Options{ConnString: d.raw.ConnString})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(db.Close)
	return db
}

// connString leads to the database, or nowhere when there is none.
func (d *operatorEnv) connString() string {
	if d.raw == nil {
		return "postgres://nobody@127.0.0.1:1/none"
	}
	return d.raw.ConnString
}

func (d *operatorEnv) staging() string { return filepath.Join(d.dir, "state", "staging") }

// app returns what a command runs in.
func (d *operatorEnv) app(stdout, stderr *testenv.Output, settings ...string) *app {
	return &app{
		stdin: strings.NewReader(""), stdout: stdout, stderr: stderr, euid: os.Geteuid(),
		environ: append(settings, // the first of two counts
			"HOME="+d.dir, "STATE_DIRECTORY="+filepath.Join(d.dir, "state"), "RUNTIME_DIRECTORY="+filepath.Join(d.dir, "run"),
			"WRKTALK_AGENT_DB_URL="+d.connString(), "WRKTALK_AGENT_DEPLOYMENT_TYPE=docker",
			"WRKTALK_AGENT_COMPOSE_WORKING_DIR="+filepath.Join(d.dir, "work"),
			"WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER=none", "WRKTALK_AGENT_HTTP_LISTEN=off",
		),
	}
}

// run runs a command to its end.
func (d *operatorEnv) run(args ...string) (stdout, stderr string, code int) {
	var out, complaint testenv.Output
	code = d.app(&out, &complaint).main(args)
	return out.String(), complaint.String(), code
}

// must runs a command that has to succeed and returns what it printed.
func (d *operatorEnv) must(args ...string) string {
	d.t.Helper()
	out, complaint, code := d.run(args...)
	if code != exitDone {
		d.t.Fatalf("%q: exit code %d\n%s%s", args, code, out, complaint)
	}
	return out
}

// document runs a command with --output json and reads what it prints.
func (d *operatorEnv) document(into any, args ...string) {
	d.t.Helper()
	out := d.must(append(args, "--output", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		d.t.Fatalf("%q prints %q: %v", args, out, err)
	}
}

// artifact stores a release.
func (d *operatorEnv) artifact(chart task.ChartType, version string) string {
	d.t.Helper()
	data := []byte("bytes of " + version)
	id, err := d.db.Push(d.t.Context(), taskdb.NewArtifact{
		Version: version, ChartType: chart, Size: int64(len(data)), Data: bytes.NewReader(data),
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return id
}

// createTask adds a deploy task.
func (d *operatorEnv) createTask(artifact string) task.ID {
	d.t.Helper()
	id, err := d.db.AddTask(d.t.Context(), taskdb.NewTask{Kind: task.KindDeploy, ArtifactID: &artifact})
	if err != nil {
		d.t.Fatal(err)
	}
	return id
}

// claim takes the next task as an agent elsewhere does.
func (d *operatorEnv) claim() *taskdb.Task {
	d.t.Helper()
	c, err := d.db.Claim(d.t.Context(), taskdb.Target{Deployment: task.DeploymentDocker, Name: "wrktalk"}, claimAll)
	if err != nil || c.Task == nil {
		d.t.Fatalf("claimed %+v, %v", c, err)
	}
	return c.Task
}

// mailServer starts a mail server and has the database name it.
func (d *operatorEnv) mailServer() *testenv.SMTP {
	d.t.Helper()
	server := testenv.NewSMTP(d.t, testenv.SMTPOptions{})
	d.raw.SQL(d.t, fmt.Sprintf(`insert into deployment_config (deployment_type, smtp_host, smtp_port, smtp_from)
		values ('docker', '%s', %d, 'agent@example.com')`, server.Host, server.Port))
	return server
}

// published puts a deploy task into ready.
func published(t *testing.T, d *operatorEnv, id task.ID) *staging.Task {
	t.Helper()
	m := staging.Manifest{TaskID: id, Kind: task.KindDeploy, Token: "t"}
	draft, err := d.openStaging(staging.Fetcher).Create(staging.Name(time.Now(), m.Kind, "1.0.0", id))
	if err != nil {
		t.Fatal(err)
	}
	st, err := draft.Publish(m)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// openStaging opens the staging directory as a component.
func (d *operatorEnv) openStaging(role staging.Role) *staging.Dir {
	d.t.Helper()
	dir, err := staging.Open(d.staging(), role)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { dir.Close() })
	return dir
}
