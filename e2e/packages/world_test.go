// Package packages tests the packages as a user meets them: installed by dpkg and rpm
// on a Debian host with systemd, which runs the agent under the units that they bring.
package packages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// patience is how long an event may take before it is taken never to come. It is no
// measure of speed.
const patience = 5 * time.Minute

// The versions that are installed. They hold the same programs.
const (
	older = "1.0.0"
	newer = "1.1.0"
)

var built struct {
	sync.Once
	dir string
	err error
}

// packages builds deb and rpm of both versions, as `make packages` does, and returns
// their directory.
func packages(t testing.TB) string {
	t.Helper()
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "wrktalk-packages-"); built.err != nil {
			return
		}
		testenv.AtExit(func() { os.RemoveAll(built.dir) })
		built.err = buildPackages(built.dir)
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

func buildPackages(dir string) error {
	work := filepath.Join(dir, "work")
	script := exec.Command("../../scripts/packages", runtime.GOARCH)
	script.Env = append(os.Environ(), "PACKAGE_VERSION="+older, "PACKAGE_WORK="+work, "PACKAGE_OUT="+dir)
	if out, err := script.CombinedOutput(); err != nil {
		return fmt.Errorf("build the packages: %w\n%s", err, out)
	}
	text, err := os.ReadFile("../../scripts/packages")
	if err != nil {
		return err
	}
	nfpm := regexp.MustCompile(`(?m)^nfpm=(.*)$`).FindSubmatch(text)
	if nfpm == nil {
		return errors.New("scripts/packages does not say what it packages with")
	}
	// The newer version's default configuration is another one.
	change := exec.Command("sh", "-ec", `echo '# Something new.' >>config.toml
for packager in deb rpm; do
	go run "$NFPM" package --config nfpm.yaml --packager $packager --target "$PACKAGE_OUT/"
done`)
	change.Dir = work
	change.Env = append(os.Environ(), "NFPM="+string(nfpm[1]), "PACKAGE_VERSION="+newer, "PACKAGE_ARCH="+runtime.GOARCH, "PACKAGE_OUT="+dir,
		"CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := change.CombinedOutput(); err != nil {
		return fmt.Errorf("package the newer version: %w\n%s", err, out)
	}
	return os.RemoveAll(work)
}

const dbPassword = `p@ss:w/or'd %41\"{}`

var shared struct {
	sync.Once
	server *testenv.Postgres
	err    error
}

// world is a host on which the packages are installed, with a database and a mail server.
type world struct {
	*testenv.Host
	t       testing.TB
	db      *testenv.DB
	smtp    *testenv.SMTP
	project string
}

// hold is a file on the host: while it is there, a deployment waits behind its page.
const hold = "/run/wrktalk-agent/hold"

func newWorld(t testing.TB) *world {
	t.Helper()
	host := testenv.DebianHost(t, packages(t))
	shared.Do(func() {
		shared.server, shared.err = testenv.StartPostgres(testenv.PostgresOptions{Password: dbPassword})
		if shared.err == nil {
			testenv.AtExit(shared.server.Stop)
		}
	})
	if shared.err != nil {
		testenv.Missing(t, "PostgreSQL", shared.err)
	}
	w := &world{Host: host, t: t, smtp: testenv.NewSMTP(t, testenv.SMTPOptions{}), project: testenv.ComposeProject(t)}
	var err error
	if w.db, err = shared.server.NewDatabase(w.project, testenv.SchemaV42); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := w.Try("journalctl --no-pager --output=short-precise | tail -n 200")
			t.Logf("the host's journal:\n%s", log)
		}
		w.Try("systemctl kill --signal=KILL 'wrktalk-agent*'") // or they would deploy what is being removed
		if err := shared.server.DropDatabase(w.project); err != nil {
			t.Error(err)
		}
	})
	w.sql(`insert into deployment_config (deployment_type, compose_project_name, smtp_host, smtp_port, smtp_from)
			values ('docker', '%s', '%s', %d, 'agent@wrktalk.example');
		insert into admin (name, email) values ('Ada', 'ada@wrktalk.example')`, w.project, w.smtp.Host, w.smtp.Port)
	// As on a host where Docker was installed before.
	w.Run("groupadd --system --gid $(stat -c %g /run/docker.sock) docker")
	return w
}

// configure does what the packages say is to be done before the first start.
func (w *world) configure() {
	w.t.Helper()
	w.Write("/run/password", dbPassword+"\n")
	w.Run("cat /run/password | " + testenv.Doc(w.t, "docs/installation.md", "What to do next", 0))
	w.Run(fmt.Sprintf(`cd /etc/wrktalk-agent
sed -i -e 's/^#deployment_type = .*/deployment_type = "docker"\npoll_interval = "1s"\nheartbeat_interval = "1s"/' \
	-e 's/^#host = .*/host = "127.0.0.1"/' -e 's/^#port = .*/port = %d/' -e 's/^#name = .*/name = "%s"/' \
	-e 's/^#project_name = .*/project_name = "%s"/' \
	-e 's/^#mode_handler = .*/mode_handler = "command"\nenter_command = "while [ -e %s ]; do sleep 0.1; done"\nleave_command = "true"\ntimeout = "10m"/' \
	-e 's/^reload_command.*//' config.toml
printf '[http]\nlisten = "off"\n' >>config.toml`,
		shared.server.Port, w.db.Name, w.project, strings.ReplaceAll(hold, "/", `\/`)))
}

func (w *world) sql(format string, args ...any) string {
	w.t.Helper()
	return w.db.SQL(w.t, fmt.Sprintf(format, args...))
}

// deploy asks for a release of the test application and returns the task.
func (w *world) deploy(version string) string { return w.deployWith(version, "") }

// deployWith does the same; more is added to the service.
func (w *world) deployWith(version, more string) string {
	w.t.Helper()
	bundle := testenv.Tarball(w.t, map[string]string{
		"compose.yaml": "services:\n  web:\n    image: " + testenv.AppImage(w.t, version) + "\n    " + more + "\n",
	})
	return w.sql(`with a as (insert into release_artifact (release_version, chart_type, artifact_data, env_data, sha256)
			values ('%s', 'compose', '\x%x', 'A=secret-of-%[1]s', encode(sha256('\x%[2]x'), 'hex')) returning id)
		insert into agent_task (type, release_artifact_id) select 'deploy', id from a returning id`, version, bundle)
}

// await waits until the task has ended, and fails the test unless it was completed.
func (w *world) await(id string) {
	w.t.Helper()
	w.eventually("task "+id+" ends", func() bool {
		status := w.sql("select status from agent_task where id = '%s'", id)
		if status == "failed" {
			w.t.Fatalf("the task failed: %s", w.sql("select error_message from agent_task where id = '%s'", id))
		}
		return status == "completed"
	})
}

// deployHeld asks for a release and waits until its deployment is behind its page, where it
// stays until release is called.
func (w *world) deployHeld(version string) (id string, release func()) {
	w.t.Helper()
	w.Run("touch " + hold)
	id = w.deploy(version)
	w.eventually("the deployment is behind its page", func() bool {
		out, err := w.Try("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -x 'while \\[ -e " + hold + " .*'")
		return err == nil && out != ""
	})
	return id, func() { w.Run("rm " + hold) }
}

// property returns what systemd says of a unit.
func (w *world) property(unit, name string) string {
	w.t.Helper()
	return w.Run("systemctl show --value --property=" + name + " " + unit)
}

// pid returns the main process of a unit, 0 for none.
func (w *world) pid(unit string) int {
	w.t.Helper()
	n, err := strconv.Atoi(w.property(unit, "MainPID"))
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// awaitActive waits until a unit is active, by another process than former.
func (w *world) awaitActive(unit string, former int) {
	w.t.Helper()
	w.eventually(unit+" is active", func() bool {
		return w.property(unit, "ActiveState") == "active" && w.pid(unit) != former
	})
}

// serving returns the version that the application answers with, by its image.
func (w *world) serving() string {
	w.t.Helper()
	ids := strings.Fields(testenv.DockerOutput(w.t, "ps", "-q", "--filter", "label=com.docker.compose.project="+w.project))
	if len(ids) != 1 {
		w.t.Fatalf("%d containers run, want 1", len(ids))
	}
	var env []string
	out := testenv.DockerOutput(w.t, "inspect", "--format", "{{json .Config.Env}}", ids[0])
	if err := json.Unmarshal([]byte(out), &env); err != nil {
		w.t.Fatal(err)
	}
	for _, v := range env {
		if version, ok := strings.CutPrefix(v, "APP_VERSION="); ok {
			return version
		}
	}
	return ""
}

// mails waits for n mails in all.
func (w *world) mails(n int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if mails, err := w.smtp.Await(ctx, n); err != nil || len(mails) != n {
		w.t.Fatalf("%d mails arrived, want %d: %v", len(mails), n, err)
	}
}

// logged returns what a unit wrote to the journal with the given priorities.
func (w *world) logged(unit, priorities string) string {
	w.t.Helper()
	return w.Run("journalctl --no-pager --output=cat --unit=" + unit + " --priority=" + priorities)
}

// eventually polls what no event can be had for: another system's state.
func (w *world) eventually(what string, done func() bool) {
	w.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("%s: it did not come to that", what)
		}
	}
}
