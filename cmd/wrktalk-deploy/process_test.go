package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// limit is how long anything may take before it is taken never to end.
const limit = 5 * time.Minute

// brief is a limit that must be reached for real; it holds what comes before.
const brief = 15 * time.Second

// The test binary is wrktalk-deploy when this variable is set.
const beProgram = "BE_WRKTALK_DEPLOY"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		os.Exit(0)
	}
	testenv.Main(m)
}

// process is a wrktalk-deploy with the test as its runner.
type process struct {
	t        *testing.T
	cmd      *exec.Cmd
	in       io.WriteCloser
	messages chan protocol.Message
	output   *bytes.Buffer
}

// start runs wrktalk-deploy and gives it the document job. Its environment
// holds what no bundle may see.
func start(t *testing.T, job any, args ...string) *process {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, messages: make(chan protocol.Message, 100), output: &bytes.Buffer{}}
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Env = append(os.Environ(), beProgram+"=1", "WRKTALK_AGENT_DB_PASSWORD=of-the-agent", "FROM_OS=of-the-os",
		"COMPOSE_PROJECT_NAME=other", "COMPOSE_FILE=/none.yaml")
	p.cmd.ExtraFiles = []*os.File{write}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.WaitDelay = limit
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	readers := make(chan struct{})
	go func() {
		defer close(readers)
		defer close(p.messages)
		lines := bufio.NewScanner(read)
		for lines.Scan() {
			var m protocol.Message
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				t.Errorf("message %q: %v", lines.Text(), err)
			}
			p.messages <- m
		}
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended long ago when all went well
		_ = p.in.Close()
		<-readers
		_ = read.Close()
		t.Logf("wrktalk-deploy said:\n%s", p.output)
	})
	if doc, ok := job.(string); ok {
		_, _ = io.WriteString(p.in, doc) // it may refuse to read all of it
	} else if err := json.NewEncoder(p.in).Encode(job); err != nil {
		t.Fatal(err)
	}
	return p
}

// until answers gates and returns at the event of phase; the Result, or the
// end, must not come first.
func (p *process) until(phase task.Phase) task.Event {
	p.t.Helper()
	for m := range p.messages {
		switch {
		case m.ApprovalRequest:
			p.reply(protocol.Approval{Approved: true})
		case m.Result != nil:
			p.t.Fatalf("a result before %s: %+v", phase, *m.Result)
		case m.Event != nil && m.Event.Phase == phase:
			return *m.Event
		}
	}
	p.t.Fatalf("ended before %s", phase)
	return task.Event{}
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) reply(r protocol.Approval) {
	p.t.Helper()
	if err := json.NewEncoder(p.in).Encode(r); err != nil {
		p.t.Error(err)
	}
}

// end answers gates until the process ends, and returns its Result, nil for
// none, and its exit code.
func (p *process) end() (*protocol.Result, int) {
	p.t.Helper()
	var res *protocol.Result
	for m := range p.messages {
		if m.ApprovalRequest {
			p.reply(protocol.Approval{Approved: true})
		}
		if m.Result != nil {
			res = m.Result
		}
	}
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return res, p.cmd.ProcessState.ExitCode()
}

// project is a Compose project on the real engine.
type project struct {
	t             *testing.T
	name, workdir string
	image         string
}

func newProject(t *testing.T) *project {
	t.Helper()
	testenv.Docker(t)
	return &project{
		t: t, name: testenv.ComposeProject(t), workdir: filepath.Join(t.TempDir(), "work"),
		image: testenv.AppImageWith(t, "image", 0),
	}
}

// release has one service, web, in the given mode of the test application.
func (p *project) release(version, mode string) *protocol.Release {
	p.t.Helper()
	dir := p.t.TempDir()
	text := fmt.Sprintf(`
services:
  web:
    image: %s
    command: [%s]
    ports: ["127.0.0.1::8080"]
    environment:
      APP_VERSION: "%s${WRKTALK_AGENT_DB_PASSWORD:-}${FROM_OS:-}"
      APP_DELAY: 3s
      WRKTALK_AGENT_DB_PASSWORD:
    stop_grace_period: 1s
    healthcheck: {test: [CMD, /app, health], interval: 200ms, retries: 1000}
`, p.image, mode, version)
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
	return &protocol.Release{ArtifactID: version, Version: version, SHA256: "abcdef0123456789", PayloadDir: dir}
}

func (p *project) job(action protocol.Action, rel, prev *protocol.Release) protocol.Job {
	return protocol.Job{
		Schema: protocol.Schema, Action: action, TaskID: "t-" + task.ID(rel.Version), Kind: task.KindDeploy, Token: "now",
		Release: *rel, Previous: prev, Timeout: limit, RestoreTimeout: limit,
		Settings: protocol.Settings{Compose: &protocol.Compose{Project: p.name, WorkingDir: p.workdir, Keep: 1, StableFor: time.Second}},
	}
}

// up deploys rel with a process of its own; it must succeed.
func (p *project) up(rel *protocol.Release) {
	p.t.Helper()
	res, code := start(p.t, p.job(protocol.ActionDeploy, rel, nil)).end()
	if code != 0 || res == nil || !res.Succeeded {
		p.t.Fatalf("deploy %s: exit code %d, %+v", rel.Version, code, res)
	}
}

// serves checks that exactly one container, with its proper name, answers with
// version.
func (p *project) serves(version string) {
	p.t.Helper()
	names := testenv.DockerOutput(p.t, "ps", "--all", "--format", "{{.Names}}", "--filter", "label=com.docker.compose.project="+p.name)
	if names != p.name+"-web-1" {
		p.t.Fatalf("containers: %q", names)
	}
	resp, err := http.Get("http://" + strings.Fields(testenv.DockerOutput(p.t, "port", names, "8080"))[0])
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != version {
		p.t.Fatalf("web answers %q, %v, not %q", got, err, version)
	}
}
