package runner

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// maxMessage bounds one line that wrktalk-deploy sends.
const maxMessage = 1 << 20

// killDelay is how long a killed process group may take to be gone, and its
// pipes to be drained, before the runner stops waiting for them.
const killDelay = 5 * time.Second

// process is one running wrktalk-deploy.
type process struct {
	cmd      *exec.Cmd
	stdin    *os.File
	messages chan deployment.Message // closed when the process has ended and been read to the end
	exit     *os.ProcessState        // how it ended; valid once messages is closed

	mu     sync.Mutex
	reaped bool // its number may belong to somebody else
}

// startProcess starts program in a process group of its own with the job on
// its standard input. Everything it prints goes to output. It sees env and
// nothing else of the environment. The caller receives from messages until it
// is closed.
//
// The thread that forks is kept for as long as the process lives: the
// parent-death signal is bound to that thread, not to the runner
// (golang/go#27505).
func startProcess(program string, env []string, job deployment.Job, output io.Writer) (*process, error) {
	doc, err := json.Marshal(job)
	if err != nil {
		return nil, fmt.Errorf("encode deployment job: %w", err)
	}
	var pipes [4]*os.File // stdin read and write, messages read and write
	closeAll := func(fs ...*os.File) {
		for _, f := range fs {
			if f != nil {
				f.Close()
			}
		}
	}
	for i := 0; i < len(pipes); i += 2 {
		if pipes[i], pipes[i+1], err = os.Pipe(); err != nil {
			closeAll(pipes[:]...)
			return nil, fmt.Errorf("make a pipe for %s: %w", program, err)
		}
	}
	cmd := exec.Command(program)
	cmd.Env = append([]string{}, env...) // nil would be all of ours
	cmd.Dir = "/"
	cmd.Stdin = pipes[0]
	cmd.Stdout, cmd.Stderr = output, output
	cmd.ExtraFiles = []*os.File{pipes[3]} // becomes deployment.MessageFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = killDelay

	p := &process{cmd: cmd, stdin: pipes[1], messages: make(chan deployment.Message)}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		closeAll(pipes[0], pipes[3])
		started <- err
		if err != nil {
			return
		}
		read := make(chan struct{})
		go func() {
			defer close(read)
			readMessages(pipes[2], p.messages)
		}()
		p.awaitExit()
		p.kill() // whatever the process left of its group, so that it holds no pipe
		p.reap()
		pipes[2].SetReadDeadline(time.Now().Add(killDelay))
		<-read
		closeAll(pipes[1], pipes[2])
		close(p.messages)
	}()
	if err := <-started; err != nil {
		closeAll(pipes[1], pipes[2])
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	if err := p.send(append(doc, '\n')); err != nil {
		p.kill() // it ended before it read its job; Wait says how
	}
	return p, nil
}

// send writes to the process's standard input.
func (p *process) send(data []byte) error {
	_, err := p.stdin.Write(data)
	return err
}

// reply answers a gate.
func (p *process) reply(r deployment.Reply) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return p.send(append(data, '\n'))
}

// interrupt asks the process to give up and restore what served before.
func (p *process) interrupt() { p.cmd.Process.Signal(syscall.SIGTERM) }

// kill ends the whole process group at once.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// awaitExit returns when the process has ended, without reaping it: until it is
// reaped its number is its own, and its group can be killed safely.
func (p *process) awaitExit() {
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// reap collects the process. What escaped its group and holds its output open
// delays that by killDelay at most.
func (p *process) reap() {
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
	p.cmd.Wait() // how it ended is in its state, whatever became of its output
	p.exit = p.cmd.ProcessState
}

// readMessages decodes lines until the end; a line that is no message is
// passed over, since the other end may have been killed while writing it.
func readMessages(r io.Reader, out chan<- deployment.Message) {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := readLine(br)
		if err != nil {
			return
		}
		var m deployment.Message
		if json.Unmarshal(line, &m) == nil {
			out <- m
		}
	}
}

// readLine returns the next line; one longer than maxMessage is cut.
func readLine(br *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		if len(line)+len(part) <= maxMessage {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// exitReason says in words how the process ended that gave no result.
func exitReason(exit *os.ProcessState) string {
	if exit == nil {
		return "ended in a way that is not known"
	}
	if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		return fmt.Sprintf("was ended by signal %d (%s)", st.Signal(), st.Signal())
	}
	return fmt.Sprintf("ended with exit code %d and no result", exit.ExitCode())
}

// afterDone returns a context that ends once ctx has ended and d has passed
// since, and a function that ends it; that may be called more than once.
func afterDone(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(d, cancel)
		context.AfterFunc(later, func() { timer.Stop() })
	})
	return later, func() { stop(); cancel() }
}
