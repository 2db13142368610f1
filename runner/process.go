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
	"syscall"
	"time"

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
	done     chan error              // then delivers what Wait said, once
}

// startProcess starts program in a process group of its own with the job on
// its standard input. Everything it prints goes to output. The caller receives
// from messages until it is closed, and then from done.
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
	cmd.Env = env
	cmd.Dir = "/"
	cmd.Stdin = pipes[0]
	cmd.Stdout, cmd.Stderr = output, output
	cmd.ExtraFiles = []*os.File{pipes[3]} // becomes deployment.MessageFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = killDelay

	p := &process{cmd: cmd, stdin: pipes[1], messages: make(chan deployment.Message), done: make(chan error, 1)}
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
		err = cmd.Wait()
		p.kill() // whatever the process left of its group
		pipes[2].SetReadDeadline(time.Now().Add(killDelay))
		<-read
		closeAll(pipes[1], pipes[2])
		p.done <- err
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
func (p *process) kill() { syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }

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

// exitReason says in words how the process ended.
func exitReason(err error) string {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		if err == nil {
			return "ended without a result"
		}
		return err.Error()
	}
	if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		return fmt.Sprintf("was ended by signal %d (%s)", st.Signal(), st.Signal())
	}
	return fmt.Sprintf("ended with exit code %d and no result", exit.ExitCode())
}

// afterFunc returns a channel that is closed once ctx is done and d has passed
// since, and a function that releases it.
func afterDone(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	later, cancel := context.WithCancel(context.Background())
	var timer *time.Timer
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		timer = time.AfterFunc(d, cancel)
		close(fired)
	})
	return later, func() {
		if !stop() {
			<-fired
			timer.Stop()
		}
		cancel()
	}
}
