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
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// The test binary stands in for wrktalk-deploy where the real one cannot be made
// to misbehave. FAKE_DEPLOY and FAKE_RECOVER say what it does for each action,
// FAKE_DIR is where it leaves word and waits to be let go.
func TestMain(m *testing.M) {
	if dir := os.Getenv("FAKE_DIR"); dir != "" {
		os.Exit(fake(dir))
	}
	testenv.Main(m)
}

// stand is one run of the stand-in.
type stand struct {
	dir string
	job deployment.Job
	in  *json.Decoder
	out *os.File
}

func fake(dir string) int {
	s := &stand{dir: dir, in: json.NewDecoder(os.Stdin), out: os.NewFile(deployment.MessageFD, "messages")}
	if os.Getenv("FAKE_DEPLOY") == "deaf" {
		s.word("deaf")
		return 3
	}
	if err := s.in.Decode(&s.job); err != nil {
		return 2
	}
	mode := os.Getenv("FAKE_DEPLOY")
	if s.job.Action == deployment.ActionRecover {
		mode = os.Getenv("FAKE_RECOVER")
	}
	s.word(string(s.job.Action))
	modes[mode](s)
	return 0
}

// modes are the ways to behave, by name.
var modes = map[string]func(*stand){
	"good":  func(s *stand) { s.deploy() },
	"fails": func(s *stand) { s.result(s.failed("it does not come up")) },
	"refuses": func(s *stand) {
		s.result(deployment.Result{Message: "nothing was changed", Error: "the engine is away"})
	},
	"gates-and-restores": func(s *stand) { s.gate(); s.result(s.failed("restored")) },
	"restores":           func(s *stand) { s.result(s.failed("restored")) },
	"dies":               func(s *stand) { s.gate(); s.die() },
	"silent":             func(*stand) {},
	"hangs": func(s *stand) {
		signal.Ignore(syscall.SIGTERM)
		s.gate()
		s.word("hanging")
		select {}
	},
	"waits": func(s *stand) { s.word("waiting"); s.wait(); s.deploy() },
	"waits-inside": func(s *stand) {
		s.gate()
		s.event(task.PhaseRestoring, "waiting")
		s.wait()
		s.result(s.failed("restored late"))
	},
	"obeys": func(s *stand) {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		s.gate()
		s.word("working")
		<-term
		s.result(s.failed("interrupted"))
	},
	"floods": func(s *stand) {
		line := []byte(strings.Repeat("all work and no play ", 400) + "PASSWORD-0815\n")
		for written := 0; written < maxLog+1<<20; written += len(line) {
			if _, err := os.Stdout.Write(line); err != nil {
				os.Exit(9)
			}
		}
		s.deploy()
	},
	"garbage": func(s *stand) {
		s.out.WriteString("no message\n{\"event\":\n{}\nnull\n[1,2]\n\x00\xff\n")
		s.out.WriteString(`{"event":{"text":"` + strings.Repeat("x", maxMessage) + "\"}}\n")
		s.deploy()
		s.out.WriteString(`{"result":{"succ`)
	},
	"lingers": func(s *stand) {
		signal.Ignore(syscall.SIGTERM)
		s.deploy()
		select {}
	},
	"leaves-child":   func(s *stand) { s.child(false); s.deploy() },
	"leaves-session": func(s *stand) { s.child(true); s.deploy() },
}

func (s *stand) deploy() {
	if reply := s.gate(); !reply.Proceed {
		s.result(deployment.Result{Message: "not deployed", Error: reply.Reason})
		return
	}
	s.word("changed")
	s.result(deployment.Result{Succeeded: true, Message: "deployed", Serving: s.job.Release.Version, Touched: true})
}

func (s *stand) failed(why string) deployment.Result {
	return deployment.Result{Message: "failed", Error: why, Serving: "0.9.0", Restored: true, Touched: true, LogTail: []string{"last words"}}
}

func (s *stand) die() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// child leaves a process behind that holds every pipe, in a session of its own
// or in this one's group.
func (s *stand) child(session bool) {
	cmd := exec.Command("/bin/sleep", "3600")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{s.out}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: session}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	s.word(fmt.Sprint("child ", cmd.Process.Pid))
}

func (s *stand) send(m deployment.Message) {
	line, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	s.out.Write(append(line, '\n'))
}

func (s *stand) event(phase task.Phase, text string) {
	s.send(deployment.Message{Event: &task.Event{Time: time.Now(), Component: "deploy", Phase: phase, Text: text}})
}

func (s *stand) result(r deployment.Result) { s.send(deployment.Message{Result: &r}) }

func (s *stand) gate() deployment.Reply {
	s.send(deployment.Message{Gate: true})
	var reply deployment.Reply
	if err := s.in.Decode(&reply); err != nil {
		os.Exit(1) // the runner is gone
	}
	s.word(fmt.Sprint("proceed ", reply.Proceed))
	return reply
}

// word leaves a line for the test.
func (s *stand) word(text string) {
	f, err := os.OpenFile(filepath.Join(s.dir, "words"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	if _, err := f.WriteString(text + "\n"); err != nil {
		panic(err)
	}
	f.Close()
}

// wait blocks until the test writes to the pipe called go.
func (s *stand) wait() {
	f, err := os.Open(filepath.Join(s.dir, "go"))
	if err != nil {
		panic(err)
	}
	io.Copy(io.Discard, bufio.NewReader(f))
}
