package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// patience is how long an event of the whole may take before it is taken never
// to come. It is no measure of speed.
const patience = 10 * time.Minute

var built struct {
	once sync.Once
	dir  string
	err  error
}

// programs builds both programs, with fault points, and returns their
// directory.
func programs(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "wrktalk-e2e-"); built.err != nil {
			return
		}
		testenv.AtExit(func() { os.RemoveAll(built.dir) })
		cmd := exec.Command("go", "build", "-trimpath", "-tags", "faultinject", "-ldflags", "-s -w", "-o", built.dir+"/",
			"github.com/wrktalk/wrktalk-agent/cmd/wrktalk-agent", "github.com/wrktalk/wrktalk-agent/cmd/wrktalk-deploy")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// dbPassword is a password that breaks every naive connection string.
const dbPassword = `p@ss:w/or'd %41\"{}`

var protected struct {
	once   sync.Once
	server *testenv.Postgres
	err    error
	count  atomic.Int64
}

// world is one customer's machine. Nothing of it is shared but the servers, so
// tests run beside each other.
type world struct {
	t       testing.TB
	db      *testenv.DB
	smtp    *testenv.SMTP
	dir     string
	project string
	env     []string

	agent *exec.Cmd
	log   *testenv.Output
	ended chan struct{}
}

// newWorld returns a machine with an empty v4.2 database that asks for a
// password, two active administrators and one that is not, and a mail server.
func newWorld(t testing.TB, settings ...string) *world {
	t.Helper()
	testenv.Docker(t)
	return newMachine(t, testenv.ComposeProject(t), settings...)
}

// newMachine returns the same without Docker, for the given Compose project.
func newMachine(t testing.TB, project string, settings ...string) *world {
	t.Helper()
	protected.once.Do(func() {
		protected.server, protected.err = testenv.StartPostgres(testenv.PostgresOptions{Password: dbPassword})
		if protected.err == nil {
			testenv.AtExit(protected.server.Stop)
			protected.err = createAgentRole(protected.server.SQL)
		}
	})
	if protected.err != nil {
		testenv.Missing(t, "PostgreSQL", protected.err)
	}
	name := fmt.Sprintf("e2e_%d", protected.count.Add(1))
	db, err := protected.server.NewDatabase(name, testenv.SchemaV42)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := protected.server.DropDatabase(name); err != nil {
			t.Error(err)
		}
	})
	db.SQL(t, grants(t))
	w := &world{t: t, db: db, smtp: testenv.NewSMTP(t, testenv.SMTPOptions{}), dir: t.TempDir(), project: project}
	w.sql(`insert into deployment_config (deployment_type, compose_project_name, smtp_host, smtp_port, smtp_from)
			values ('docker', '%s', '%s', %d, 'agent@wrktalk.example');
		insert into admin (name, email) values ('Ada', 'ada@wrktalk.example'), ('Grace', 'grace@wrktalk.example');
		insert into admin (name, email, is_active) values ('Former', 'former@wrktalk.example', false)`,
		w.project, w.smtp.Host, w.smtp.Port)
	w.env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir,
		"STATE_DIRECTORY=" + filepath.Join(w.dir, "state"), "RUNTIME_DIRECTORY=" + filepath.Join(w.dir, "run"),
		"WRKTALK_AGENT_DB_HOST=127.0.0.1", "WRKTALK_AGENT_DB_PORT=" + strconv.Itoa(protected.server.Port),
		"WRKTALK_AGENT_DB_NAME=" + name, "WRKTALK_AGENT_DB_USER=postgres", "WRKTALK_AGENT_DB_PASSWORD=" + dbPassword,
		"WRKTALK_AGENT_DB_SSL_MODE=prefer",
		"WRKTALK_AGENT_DEPLOYMENT_TYPE=docker",
		"WRKTALK_AGENT_COMPOSE_PROJECT_NAME=" + w.project, "WRKTALK_AGENT_COMPOSE_WORKING_DIR=" + filepath.Join(w.dir, "work"),
		"WRKTALK_AGENT_POLL_INTERVAL=1", "WRKTALK_AGENT_HEARTBEAT_INTERVAL=1",
		"WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER=none", "WRKTALK_AGENT_HTTP_LISTEN=off",
	}, settings...)
	return w
}

func (w *world) sql(format string, args ...any) string {
	w.t.Helper()
	return w.db.SQL(w.t, fmt.Sprintf(format, args...))
}

// run starts the agent as a service manager would. It is stopped when the test
// ends, and must then leave no process behind.
func (w *world) run(settings ...string) {
	w.t.Helper()
	w.runProgram(filepath.Join(programs(w.t), "wrktalk-agent"), settings...)
}

// runProgram does the same with another build of the agent.
func (w *world) runProgram(program string, settings ...string) {
	w.t.Helper()
	w.start(exec.Command(program, "run"), settings)
}

// runComponent starts one component alone, in place of the agent.
func (w *world) runComponent(name string) {
	w.t.Helper()
	w.start(exec.Command(filepath.Join(programs(w.t), "wrktalk-agent"), name), nil)
}

func (w *world) start(cmd *exec.Cmd, settings []string) {
	w.t.Helper()
	cmd.Env = append(append(slices.Clone(w.env), "WRKTALK_AGENT_DB_USER="+agentRole), settings...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	w.log = &testenv.Output{}
	cmd.Stdout, cmd.Stderr = w.log, w.log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.agent, w.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		cmd.Wait()
		close(ended)
	}(w.ended)
	w.t.Cleanup(func() {
		w.stop()
		if w.t.Failed() {
			w.t.Logf("the agent's log:\n%s", w.logged())
		}
	})
}

func (w *world) logged() string { return w.log.String() }

// stop asks the agent to stop and waits until it has.
func (w *world) stop() {
	if w.agent == nil {
		return
	}
	w.agent.Process.Signal(syscall.SIGTERM)
	w.awaitEnd()
}

func (w *world) awaitEnd() {
	w.t.Helper()
	select {
	case <-w.ended:
		w.agent = nil
	case <-time.After(patience):
		syscall.Kill(-w.agent.Process.Pid, syscall.SIGKILL)
		w.t.Fatalf("the agent did not stop; its log:\n%s", w.logged())
	}
}

// command runs one command of wrktalk-agent and returns what it printed.
func (w *world) command(args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	cmd := exec.Command(filepath.Join(programs(w.t), "wrktalk-agent"), args...)
	cmd.Env = w.env
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// eventually polls what no event can be had for: another program's tables and
// directories.
func (w *world) eventually(what string, done func() bool) {
	w.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("%s: it did not come to that", what)
		}
	}
}

// bundle is the content of an artifact.
type bundle map[string]string

// compose is a bundle with one service of the given image; more is added to the
// service, indented by four.
func compose(image string, more ...string) bundle {
	text := "services:\n  web:\n    image: " + image + "\n"
	for _, line := range more {
		text += "    " + line + "\n"
	}
	return bundle{"docker-compose.yaml": text}
}

func (b bundle) tarball(t testing.TB) []byte { return testenv.Tarball(t, b) }

// release stores an artifact as the backend does, and returns its id.
func (w *world) release(version string, data []byte, env string) string {
	w.t.Helper()
	sum := sha256.Sum256(data)
	return w.artifact(version, data, hex.EncodeToString(sum[:]), env)
}

func (w *world) artifact(version string, data []byte, sha256, env string) string {
	w.t.Helper()
	return w.sql(`insert into release_artifact (release_version, chart_type, artifact_data, env_data, sha256)
		values ('%s', 'compose', '\x%x', %s, '%s') returning id`, version, data, quote(env), sha256)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// ask adds a task as the backend does, and returns its id.
func (w *world) ask(kind, artifact string) string {
	w.t.Helper()
	id := "null"
	if artifact != "" {
		id = "'" + artifact + "'"
	}
	return w.sql(`insert into agent_task (type, release_artifact_id) values ('%s', %s) returning id`, kind, id)
}

// row is what a task came to.
type row struct {
	Status string          `json:"status"`
	Result map[string]any  `json:"result"`
	Error  string          `json:"error_message"`
	Picked *time.Time      `json:"picked_up_at"`
	Beat   *time.Time      `json:"last_heartbeat"`
	Ended  *time.Time      `json:"completed_at"`
	Raw    json.RawMessage `json:"-"`
}

func (w *world) row(id string) row {
	w.t.Helper()
	raw := w.sql(`select row_to_json(t) from agent_task t where id = '%s'`, id)
	var r row
	if err := json.Unmarshal([]byte(raw), &r); err != nil {
		w.t.Fatal(err)
	}
	r.Raw = json.RawMessage(raw)
	return r
}

// await waits until a task has ended and returns it.
func (w *world) await(id string) row {
	w.t.Helper()
	var r row
	w.eventually("task "+id+" ends", func() bool {
		r = w.row(id)
		return r.Status == "completed" || r.Status == "failed"
	})
	return r
}

// deploy asks for a release and returns what came of it.
func (w *world) deploy(artifact string) row {
	w.t.Helper()
	return w.await(w.ask("deploy", artifact))
}

// mails waits for n mails in all and returns their recipients and subjects.
func (w *world) mails(n int) []testenv.Mail {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	mails, err := w.smtp.Await(ctx, n)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(mails) != n {
		w.t.Errorf("%d mails arrived, want %d", len(mails), n)
	}
	return mails
}

func (w *world) staging() string { return filepath.Join(w.dir, "state", "staging") }

// files lists every file below dir.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil && !e.IsDir() {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// awaitClean waits until nothing of any run is left in staging.
func (w *world) awaitClean() {
	w.t.Helper()
	w.eventually("the staging directory is empty", func() bool {
		entries, err := filepath.Glob(filepath.Join(w.staging(), "*", "*"))
		if err != nil {
			w.t.Fatal(err)
		}
		left := slices.DeleteFunc(files(w.t, w.staging()), func(path string) bool { return filepath.Base(path) == agentdir.Marker })
		return len(entries) == 0 && len(left) == 0
	})
}

// containers returns the ids of the project's containers, running or not.
func (w *world) containers() []string {
	w.t.Helper()
	return strings.Fields(testenv.DockerOutput(w.t, "ps", "-aq", "--no-trunc", "--filter", "label=com.docker.compose.project="+w.project))
}

// get asks the service web for a path, inside the container's network.
func (w *world) get(path string) string {
	w.t.Helper()
	ids := strings.Fields(testenv.DockerOutput(w.t, "ps", "-q",
		"--filter", "label=com.docker.compose.project="+w.project, "--filter", "label=com.docker.compose.service=web"))
	if len(ids) != 1 {
		w.t.Fatalf("%d containers of service web run, want 1", len(ids))
	}
	ip := testenv.DockerOutput(w.t, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", ids[0])
	var body string
	w.eventually("the application answers", func() bool {
		out, err := httpGet("http://" + ip + ":8080" + path)
		body = out
		return err == nil
	})
	return body
}
