package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// publicProjects names a directory of Compose projects, one in each of its
// directories, which are not ours to keep in the repository: see `make help`.
const publicProjects = "WRKTALK_TEST_COMPOSE"

// stepFile is what a release adds to a project, as an override: what changes with a
// release, what fails on demand, and stand-ins for images that are not on this host.
const stepFile = "wrktalk-step.json"

// TestPublicProjects takes real Compose projects through an installation, an upgrade,
// a failure and a rollback, once with the agent and once with `docker compose up -d
// --wait`, one after the other, and compares verdicts and what runs after each.
func TestPublicProjects(t *testing.T) {
	dir := os.Getenv(publicProjects)
	if dir == "" {
		t.Skip(publicProjects + " is not set")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		file := slices.IndexFunc(cli.DefaultFileNames, func(name string) bool {
			info, err := os.Stat(filepath.Join(path, name))
			return err == nil && info.Mode().IsRegular()
		})
		if file < 0 {
			continue
		}
		tried++
		t.Run(e.Name(), func(t *testing.T) {
			p := &publicProject{fixture: newFixture(t), cli: testenv.ComposeCLI(t), dir: path, file: cli.DefaultFileNames[file]}
			services := p.services()
			releases := []*protocol.Release{p.step("1.0.0", services, false), p.step("2.0.0", services, false), p.step("3.0.0", services, true)}
			agent := p.byAgent(releases)
			if err := testenv.RemoveComposeProject(context.Background(), p.project); err != nil {
				t.Fatal(err)
			}
			standard := p.byCLI(releases)
			for i, what := range []string{"install", "upgrade", "failure", "rollback"} {
				if agent[i] != standard[i] {
					t.Errorf("%s:\nby the agent:\n%s\nby the standard program:\n%s", what, agent[i], standard[i])
				}
			}
		})
	}
	if tried == 0 {
		t.Fatalf("%s holds no Compose projects", dir)
	}
}

// publicProject is one of them.
type publicProject struct {
	*fixture
	cli, dir, file string
}

// compose runs the standard program on a directory.
func (p *publicProject) compose(dir string, args ...string) (string, error) {
	cmd := exec.Command(p.cli, append([]string{"--project-name", p.project, "--project-directory", dir}, args...)...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}

// service is what the test has to know of one.
type service struct {
	Image       string `json:"image"`
	Build       any    `json:"build"`
	Healthcheck *struct {
		Test any `json:"test"`
	} `json:"healthcheck"`
}

// services returns the project's services; none when the standard program cannot
// read the project.
func (p *publicProject) services() map[string]service {
	out, err := p.compose(p.dir, "config", "--format", "json")
	if err != nil {
		p.t.Logf("the standard program cannot read it: %v", err)
		return nil
	}
	var config struct {
		Services map[string]service `json:"services"`
	}
	if err := json.Unmarshal([]byte(out), &config); err != nil {
		p.t.Fatal(err)
	}
	return config.Services
}

// step makes a release of the project. The last of its services fails if it is to.
func (p *publicProject) step(version string, services map[string]service, fails bool) *protocol.Release {
	p.t.Helper()
	to := p.t.TempDir()
	payload := filepath.Join(to, "payload")
	if err := os.CopyFS(payload, os.DirFS(p.dir)); err != nil {
		p.t.Fatal(err)
	}
	changes := map[string]any{}
	names := slices.Sorted(maps.Keys(services))
	for i, name := range names {
		changes[name] = p.change(version, services[name], fails && i == len(names)-1)
	}
	text, err := json.MarshalIndent(map[string]any{"services": changes}, "", "  ")
	if err != nil {
		p.t.Fatal(err)
	}
	// JSON has no tags: what takes the build section away is YAML.
	text = []byte(strings.ReplaceAll(string(text), `"build": null`, `"build": !reset null`))
	env, _ := os.ReadFile(filepath.Join(p.dir, envFile)) // not every project has one
	env = append(env, "\nCOMPOSE_FILE="+p.file+":"+stepFile+"\n"...)
	for path, data := range map[string][]byte{
		filepath.Join(payload, stepFile): text, filepath.Join(payload, envFile): env, filepath.Join(to, envFile): env,
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	return &protocol.Release{
		ArtifactID: version, Version: version, SHA256: digest(version, map[string]string{stepFile: string(text)}),
		PayloadDir: payload, EnvFile: filepath.Join(to, envFile),
	}
}

// change is what a release changes in a service. An image that is on this host is
// used as it is; what is not, and what is built from source, is stood in for by the
// test's own application.
func (p *publicProject) change(version string, s service, fails bool) map[string]any {
	change := map[string]any{"environment": map[string]string{"WRKTALK_STEP": version, "STUB_EXIT": ""}}
	if fails {
		change["environment"] = map[string]string{"WRKTALK_STEP": version, "STUB_EXIT": "3"}
		change["restart"] = "no" // the standard program may take a crash loop for a success
	}
	if s.Build == nil && s.Image != "" && exec.Command("docker", "image", "inspect", s.Image).Run() == nil {
		return change
	}
	change["build"], change["image"], change["pull_policy"], change["entrypoint"] = nil, p.image, "missing", []string{"/app", "serve"}
	change["user"] = "0" // the stand-in knows no others by name
	if s.Build == nil {
		delete(change, "build")
	}
	if s.Healthcheck != nil && s.Healthcheck.Test != nil {
		change["healthcheck"] = map[string]any{"test": []string{"CMD", "/app", "once"}}
	}
	if fails {
		change["entrypoint"] = []string{"/app", "crash", "3"}
	}
	return change
}

func (p *publicProject) byAgent(releases []*protocol.Release) (seen []string) {
	p.t.Helper()
	one, two, bad := releases[0], releases[1], releases[2]
	run := func(job protocol.Job) protocol.Result {
		job.Timeout, job.RestoreTimeout = 3*time.Minute, 3*time.Minute
		res := p.run(job)
		seen = append(seen, p.state(res.Succeeded))
		return res
	}
	run(p.job(one, nil))
	run(p.job(two, one))
	run(p.job(bad, two))
	back := p.job(one, two)
	back.Kind, back.TaskID = task.KindRollback, "task-back"
	run(back)
	return seen
}

func (p *publicProject) byCLI(releases []*protocol.Release) (seen []string) {
	p.t.Helper()
	dir := filepath.Join(p.t.TempDir(), filepath.Base(p.dir))
	up := func(rel *protocol.Release) bool {
		for _, name := range []string{stepFile, envFile} {
			_ = os.Remove(filepath.Join(dir, name))
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			p.t.Fatal(err)
		}
		out, err := exec.Command("cp", "-a", rel.PayloadDir+"/.", dir).CombinedOutput()
		if err != nil {
			p.t.Fatalf("%v: %s", err, out)
		}
		_, err = p.compose(dir, "up", "--detach", "--wait", "--wait-timeout", "180", "--remove-orphans")
		if err != nil {
			p.t.Logf("up of %s: %s", rel.Version, deploy.OneLine(err.Error()))
		}
		return err == nil
	}
	for _, rel := range releases[:2] {
		ok := up(rel)
		seen = append(seen, p.state(ok))
	}
	ok := up(releases[2])
	up(releases[1]) // what the agent does by itself
	seen = append(seen, p.state(ok))
	ok = up(releases[0])
	return append(seen, p.state(ok))
}

// state returns what people see of the project after a step.
func (p *publicProject) state(succeeded bool) string {
	p.t.Helper()
	lines := []string{fmt.Sprintf("verdict: %t", succeeded)}
	label := "label=com.docker.compose.project=" + p.project
	ids := strings.Fields(testenv.DockerOutput(p.t, "ps", "--all", "--quiet", "--filter", label))
	for _, id := range ids {
		lines = append(lines, "container: "+testenv.DockerOutput(p.t, "inspect", "--format",
			`{{.Name}} {{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{.State.ExitCode}} {{with .State.Health}}{{.Status}}{{end}} `+
				`{{.Config.Image}} {{range .Config.Env}}{{if eq (slice . 0 (len "W")) "W"}}{{.}} {{end}}{{end}}{{range $port, $to := .HostConfig.PortBindings}}{{$port}}={{range $to}}{{.HostPort}}{{end}} {{end}}`, id))
	}
	for _, kind := range []string{"network", "volume"} {
		for _, name := range strings.Fields(testenv.DockerOutput(p.t, kind, "ls", "--format", "{{.Name}}", "--filter", label)) {
			lines = append(lines, kind+": "+name)
		}
	}
	slices.Sort(lines[1:])
	return strings.Join(lines, "\n")
}
