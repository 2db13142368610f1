package taskdb_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var (
	helm    = taskdb.Target{Deployment: task.DeploymentKubernetes, Namespace: "prod", Name: "wrktalk"}
	compose = taskdb.Target{Deployment: task.DeploymentDocker, Name: "wrktalk"}
)

// claiming is how most tests claim.
var claiming = taskdb.ClaimOptions{Lease: time.Hour, Claim: true}

// open opens a pool for the length of a test.
func open(t testing.TB, connString string) *taskdb.DB {
	t.Helper()
	db, err := taskdb.Open(t.Context(), taskdb.Options{ConnString: connString, AppName: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// eachSchema runs a test on a database of every schema.
func eachSchema(t *testing.T, f func(t *testing.T, raw *testenv.DB, db *taskdb.DB)) {
	for name, schema := range testenv.Schemas {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := testenv.Database(t, schema)
			f(t, raw, open(t, raw.ConnString))
		})
	}
}

func claim(t testing.TB, db *taskdb.DB, target taskdb.Target, opts taskdb.ClaimOptions) *taskdb.Claim {
	t.Helper()
	c, err := db.Claim(t.Context(), target, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mustClaim claims a task that has to be there.
func mustClaim(t testing.TB, db *taskdb.DB, target taskdb.Target) *taskdb.Task {
	t.Helper()
	c := claim(t, db, target, claiming)
	if c.Task == nil {
		t.Fatalf("no task was claimed: %+v", c)
	}
	return c.Task
}

func addTask(t testing.TB, db *taskdb.DB, kind task.Kind, artifact string) task.ID {
	t.Helper()
	n := taskdb.NewTask{Kind: kind}
	if artifact != "" {
		n.ArtifactID = &artifact
	}
	id, err := db.AddTask(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func pushArtifact(t testing.TB, db *taskdb.DB, chart task.ChartType, version string) string {
	t.Helper()
	return pushBytes(t, db, chart, version, []byte("bytes of "+version))
}

func finish(t testing.TB, db *taskdb.DB, claimed *taskdb.Task, artifact string, ok bool) {
	t.Helper()
	if err := db.Finish(t.Context(), outcome(claimed, artifact, ok)); err != nil {
		t.Fatal(err)
	}
}

func outcome(claimed *taskdb.Task, artifact string, ok bool) task.Outcome {
	now := time.Now()
	o := task.Outcome{
		Schema: task.OutcomeSchema, TaskID: claimed.ID, Kind: claimed.Kind, Token: claimed.Token,
		Succeeded: ok, Message: "said", ArtifactID: artifact, StartedAt: now.Add(-time.Second), FinishedAt: now,
	}
	if !ok {
		o.Error = "went wrong"
	}
	return o
}

func contextWithTimeout(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// lockRow locks a task's row as a backend in the middle of a transaction
// does, until the returned function is called.
func lockRow(t testing.TB, connString string, id task.ID) (release func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), connString)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := conn.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "update agent_task set error_message = null where id = $1", string(id))
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := conn.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}
