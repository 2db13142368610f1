package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// shell returns a shell script as a command on the machine, with the programs on its path.
func (w *world) shell(script string) *exec.Cmd {
	w.t.Helper()
	cmd := exec.Command("bash", "-euc", script)
	cmd.Dir = w.dir
	cmd.Env = append(w.env, "PATH="+programs(w.t)+":"+os.Getenv("PATH"))
	return cmd
}

// script runs a shell script there, which has to succeed, and returns what it printed.
func (w *world) script(script string) string {
	w.t.Helper()
	out, err := w.shell(script).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v:\n%s\n%s", err, script, out)
	}
	return string(out)
}

func (w *world) write(name string, data []byte) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// The README's commands, one after the other, on a database of one's own.
func TestReadmeOnADatabaseOfOnesOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sql("delete from admin; delete from deployment_config")
	setup := `wrktalk-agent setup --admin "Ada <ada@wrktalk.example>" --smtp-from agent@wrktalk.example --smtp-host ` + w.smtp.Host + " --smtp-port " + strconv.Itoa(w.smtp.Port)
	agent := testenv.Doc(t, "README.md", "Use it on your own database", 0,
		"=db.internal", "=127.0.0.1", "_NAME=wrktalk", "_NAME="+w.db.Name, "_USER=wrktalk", "_USER=postgres",
		"/etc/wrktalk-agent/db-password", w.write("db-password", []byte(dbPassword)),
		"/var/lib/wrktalk-agent/compose", filepath.Join(w.dir, "compose"),
		"wrktalk-agent setup ", setup+" ", "wrktalk-agent run ", "exec wrktalk-agent run ")
	w.env = append(w.env, "WRKTALK_AGENT_DB_PASSWORD=")
	w.start(w.shell(agent), []string{"PATH=" + programs(t) + ":" + os.Getenv("PATH")})
	w.eventually("the agent runs", func() bool { return strings.Contains(w.logged(), `"msg":"starting"`) })
	for _, want := range []string{"Docker Engine", "ada@wrktalk.example is mailed from now on"} {
		if !strings.Contains(w.logged(), want) {
			t.Errorf("the commands do not say %q", want)
		}
	}

	image := testenv.AppImage(t, "1")
	for version, name := range map[string]string{"2.4.0": "former.tar.gz", "2.5.0": "release.tar.gz"} {
		w.write(name, compose(image, `environment: {APP_VERSION: "`+version+`", TOKEN: "${TOKEN}"}`).tarball(t))
	}
	w.write("production.env", []byte("TOKEN=canary-90ab12\n"))
	settings, _, _ := strings.Cut(agent, "wrktalk-agent check")
	w.script(settings + "wrktalk-agent push former.tar.gz --version 2.4.0 --env production.env; wrktalk-agent deploy 2.4.0 --wait")
	out := w.script(settings + testenv.Doc(t, "README.md", "Use it on your own database", 1))
	for _, want := range []string{"stored compose release 2.5.0", "deploy of 2.5.0 completed", "rollback of 2.4.0 completed", "Serving      2.4.0"} {
		if !strings.Contains(out, want) {
			t.Errorf("the commands do not say %q:\n%s", want, out)
		}
	}
	if got := w.get("/"); got != "2.4.0" {
		t.Errorf("release %s serves", got)
	}
	w.mails(3)
	w.script(settings + testenv.Doc(t, "docs/configuration.md", "Configuration", 0))

	// What the agent's own schema tells about a task.
	id := w.sql("select id from agent_task where type = 'rollback'")
	w.eventually("the timeline is recorded", func() bool {
		return strings.Contains(w.sql("%s", testenv.Doc(t, "docs/commands.md", "Before the first release", 0, "1397f0f1-...", id)), "|applying|")
	})
	w.eventually("the mail is recorded", func() bool {
		return strings.HasPrefix(w.sql("%s", testenv.Doc(t, "docs/commands.md", "Before the first release", 1, "1397f0f1-...", id)), "ada@wrktalk.example|sent|1|")
	})
}

// varying is what differs each time in what the programs print.
var varying = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d\d:\d\d:\d\d\.\d|\d+ bytes|\d+(\.\d+)?s\b`)

func alike(line string) string {
	return strings.TrimSpace(varying.ReplaceAllString(line, "*"))
}

// expectLines fails the test unless each line of want is printed, in this order.
func expectLines(t *testing.T, printed, want string) {
	t.Helper()
	lines := strings.Split(printed, "\n")
	for line := range strings.Lines(want) {
		for len(lines) > 0 && alike(lines[0]) != alike(line) {
			lines = lines[1:]
		}
		if len(lines) == 0 {
			t.Fatalf("%q is not printed, at least not there:\n%s", line, printed)
		}
	}
}

// The README's two commands: the first is the demo, which prints what the README shows;
// the second is what continuous integration runs.
func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	testenv.Docker(t)
	var commands []string
	for line := range strings.Lines(testenv.Doc(t, "README.md", "Two commands", 0)) {
		command, _, _ := strings.Cut(line, "#")
		commands = append(commands, strings.TrimSpace(command))
	}
	integration, err := os.ReadFile("../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	if len(commands) != 2 || !strings.HasSuffix(string(integration), "\nexec "+commands[1]+"\n") {
		t.Fatalf("the README's commands are %q; continuous integration runs\n%s", commands, integration)
	}
	demo := exec.Command("bash", "-c", commands[0])
	demo.Dir = ".."
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS") {
			demo.Env = append(demo.Env, v)
		}
	}
	out, err := demo.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", commands[0], err, out)
	}
	expectLines(t, string(out), testenv.Doc(t, "README.md", "Two commands", 1))
}

// A page that is asked for while the database is away says what docs/monitoring.md shows.
func TestReadinessPageOfTheDocs(t *testing.T) {
	t.Parallel()
	w := newMachine(t, "none")
	address, port := "127.0.0.1:"+freePort(t), freePort(t)
	w.run("WRKTALK_AGENT_HTTP_LISTEN="+address, "WRKTALK_AGENT_DB_PORT="+port)
	command, want, _ := strings.Cut(testenv.Doc(t, "docs/monitoring.md", "Monitoring", 0,
		"user=wrktalk database=wrktalk", "user="+agentRole+" database="+w.db.Name, "10.0.0.5:5432 (db.internal)", "127.0.0.1:"+port+" (127.0.0.1)"), "\n")
	url := strings.Replace(strings.TrimPrefix(command, "$ curl "), "127.0.0.1:9471", address, 1)
	var got string
	t.Cleanup(func() {
		if got != want {
			t.Logf("%s says\n%s\nin the docs:\n%s", url, got, want)
		}
	})
	w.eventually("the page says what it says in the docs", func() bool {
		got, _ = httpGet(url)
		return got == want
	})
}

// Prometheus understands what docs/monitoring.md says it can be told.
func TestPrometheusUnderstandsTheDocs(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("promtool"); err != nil {
		testenv.Missing(t, "promtool", err)
	}
	dir := t.TempDir()
	rules, err := os.ReadFile("../packaging/prometheus/wrktalk-agent.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	indented := strings.ReplaceAll(strings.TrimRight(testenv.Doc(t, "docs/monitoring.md", "Metrics", 0), "\n"), "\n", "\n      ")
	for name, text := range map[string]string{
		"wrktalk-agent.rules.yaml": string(rules),
		"expression.yaml":          "groups:\n- name: docs\n  rules:\n  - record: age\n    expr: |\n      " + indented + "\n",
		"prometheus.yaml":          testenv.Doc(t, "docs/monitoring.md", "Prometheus and Grafana", 0, "/etc/prometheus", dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"check", "rules", filepath.Join(dir, "expression.yaml")},
		{"check", "config", filepath.Join(dir, "prometheus.yaml")}, // with the shipped rules
	} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %q: %v\n%s", args, err, out)
		}
	}
}

// What the Python agent's containers wrote is there after the move that docs/migration.md
// describes.
func TestMigrationKeepsData(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	former, working := filepath.Join(w.dir, "tmp-wrktalk"), filepath.Join(w.dir, "work")
	for _, dir := range []string{filepath.Join(former, "data"), working} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(former, "data", "note"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	release := w.release("1.0.0", compose(testenv.AppImage(t, "1.0.0"), "volumes: ['./data:/data']").tarball(t), "")
	w.script(testenv.Doc(t, "docs/migration.md", "From the Python agent v4.2", 0,
		"/var/lib/wrktalk-agent/compose ", working+" ", "projects/wrktalk", "projects/"+w.project, "/tmp/wrktalk", former))
	w.run()
	if r := w.deploy(release); r.Status != "completed" {
		t.Fatalf("task is %s", r.Raw)
	}
	if got := w.get("/file?path=/data/note"); got != "kept" {
		t.Errorf("what the service wrote is %q", got)
	}
}
