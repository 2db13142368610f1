package runner

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// The test binary stands in for wrktalk-deploy where the real one cannot be made
// to misbehave. FAKE_DEPLOY and FAKE_RECOVER say what it does for each action,
// FAKE_DIR is where it notes what it does, and waits to be let go.
func TestMain(m *testing.M) {
	if dir := os.Getenv("FAKE_DIR"); dir != "" {
		os.Exit(fake(dir))
	}
	testenv.Main(m)
}

// fakeDeploy is one run of the stand-in.
type fakeDeploy struct {
	dir string
	job protocol.Job
	in  *json.Decoder
	out *os.File
}

func fake(dir string) int {
	s := &fakeDeploy{dir: dir, in: json.NewDecoder(os.Stdin), out: os.NewFile(protocol.MessageFD, "messages")}
	if os.Getenv("FAKE_DEPLOY") == "deaf" {
		s.note("deaf")
		return 3
	}
	if err := s.in.Decode(&s.job); err != nil {
		return 2
	}
	mode := os.Getenv("FAKE_DEPLOY")
	if s.job.Action == protocol.ActionRecover {
		mode = os.Getenv("FAKE_RECOVER")
	}
	s.note(string(s.job.Action))
	modes[mode](s)
	return 0
}

// modes are the ways to behave, by name.
var modes = map[string]func(*fakeDeploy){
	"good":  func(s *fakeDeploy) { s.deploy() },
	"fails": func(s *fakeDeploy) { s.result(s.failed("it does not come up")) },
	"refuses": func(s *fakeDeploy) {
		s.result(protocol.Result{Message: "nothing was changed", Error: "the engine is away"})
	},
	"asks-and-restores": func(s *fakeDeploy) { s.requestApproval(); s.result(s.failed("restored")) },
	"restores":          func(s *fakeDeploy) { s.result(s.failed("restored")) },
	"dies":              func(s *fakeDeploy) { s.requestApproval(); s.die() },
	"dies-once": func(s *fakeDeploy) {
		s.requestApproval()
		if err := os.Mkdir(filepath.Join(s.dir, "died"), 0o700); err == nil {
			s.die()
		}
		s.result(s.failed("restored"))
	},
	"silent": func(*fakeDeploy) {},
	"hangs": func(s *fakeDeploy) {
		signal.Ignore(syscall.SIGTERM)
		s.requestApproval()
		s.note("hanging")
		hang()
	},
	"waits": func(s *fakeDeploy) { s.note("waiting"); s.wait(); s.deploy() },
	"waits-inside": func(s *fakeDeploy) {
		s.requestApproval()
		s.event(task.PhaseRestoring, "waiting")
		s.wait()
		s.result(s.failed("restored late"))
	},
	"obeys": func(s *fakeDeploy) {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		s.requestApproval()
		s.note("working")
		<-term
		s.result(s.failed("interrupted"))
	},
	"floods": func(s *fakeDeploy) {
		line := []byte(strings.Repeat("all work and no play ", 400) + "PASSWORD-0815\n")
		for written := 0; written < maxLog+1<<20; written += len(line) {
			if _, err := os.Stdout.Write(line); err != nil {
				os.Exit(9)
			}
		}
		s.deploy()
	},
	"garbage": func(s *fakeDeploy) {
		s.out.WriteString("no message\n{\"event\":\n{}\nnull\n[1,2]\n\x00\xff\n")
		s.out.WriteString(`{"event":{"text":"` + strings.Repeat("x", maxMessage) + "\"}}\n")
		s.deploy()
		s.out.WriteString(`{"result":{"succ`)
	},
	"elsewhere": func(s *fakeDeploy) { // as of a rollback whose flags do not know what a person did
		if to := s.job.Previous; s.job.Unnamed && s.requestApproval().Approved {
			s.result(protocol.Result{Succeeded: true, Message: "deployed", ArtifactID: to.ArtifactID, Serving: to.Version, Changed: true})
		}
	},
	"lingers": func(s *fakeDeploy) {
		signal.Ignore(syscall.SIGTERM)
		s.deploy()
		hang()
	},
	"leaves-child":   func(s *fakeDeploy) { s.child(false); s.deploy() },
	"leaves-session": func(s *fakeDeploy) { s.child(true); s.deploy() },
}

func (s *fakeDeploy) deploy() {
	if reply := s.requestApproval(); !reply.Approved {
		s.result(protocol.Result{Message: "not deployed", Error: reply.Reason})
		return
	}
	s.note("changed")
	s.result(protocol.Result{Succeeded: true, Message: "deployed", Serving: s.job.Release.Version, Changed: true})
}

func (s *fakeDeploy) failed(why string) protocol.Result {
	return protocol.Result{Message: "failed", Error: why, Serving: "0.9.0", Restored: true, Changed: true, LogTail: []string{"last words"}}
}

// hang never returns. To a runtime without cgo an empty select would be a deadlock,
// which ends the process.
func hang() {
	for {
		time.Sleep(time.Hour)
	}
}

func (s *fakeDeploy) die() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// child leaves a process behind that holds every pipe, in a session of its own
// or in this one's group.
func (s *fakeDeploy) child(session bool) {
	cmd := exec.Command("/bin/sleep", "3600")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{s.out}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: session}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	s.note(fmt.Sprint("child ", cmd.Process.Pid))
}

func (s *fakeDeploy) send(m protocol.Message) {
	line, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	s.out.Write(append(line, '\n'))
}

func (s *fakeDeploy) event(phase task.Phase, text string) {
	s.send(protocol.Message{Event: &task.Event{Time: time.Now(), Component: "deploy", Phase: phase, Text: text}})
}

func (s *fakeDeploy) result(r protocol.Result) { s.send(protocol.Message{Result: &r}) }

func (s *fakeDeploy) requestApproval() protocol.Approval {
	s.send(protocol.Message{ApprovalRequest: true})
	var reply protocol.Approval
	if err := s.in.Decode(&reply); err != nil {
		os.Exit(1) // the runner is gone
	}
	s.note(fmt.Sprint("proceed ", reply.Approved))
	return reply
}

// note leaves a line for the test.
func (s *fakeDeploy) note(text string) {
	f, err := os.OpenFile(filepath.Join(s.dir, "notes"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	if _, err := f.WriteString(text + "\n"); err != nil {
		panic(err)
	}
	f.Close()
}

// wait blocks until the test writes to the pipe called go.
func (s *fakeDeploy) wait() {
	f, err := os.Open(filepath.Join(s.dir, "go"))
	if err != nil {
		panic(err)
	}
	io.Copy(io.Discard, bufio.NewReader(f))
}
