// Package process runs child processes: the one way in which the supervisor
// starts components, the runner wrktalk-deploy, and wrktalk-deploy its Helm steps.
//
// A child dies with its parent, whatever kills that: the kernel sends it
// [Command].DeathSignal. That signal is bound to the thread that forked, not to
// the parent process (golang/go#27505), so a locked thread waits for each child.
//
// A child in a process group of its own takes the group with it: what is left of
// the group is killed after the child has ended and before it is reaped, because
// until then nobody else can have its number.
//
// All that a child writes is read to the last byte, also what is still in a pipe
// when it has ended. A grandchild outside the group that keeps a pipe open holds
// nobody up.
package process

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Self is the file this process was started from, even after another one was
// put in its place. A child that is started from it has the name of its parent.
const Self = "/proc/self/exe"

// Command describes a child process.
type Command struct {
	Path string
	Args []string // what follows the program's name
	Env  []string // all it sees of the environment
	Dir  string   // "" is this process's

	// DeathSignal is what the kernel sends the child when this process ends.
	DeathSignal syscall.Signal
	// OwnGroup puts the child into a process group of its own: Kill and the
	// child's end then take the whole group along.
	OwnGroup bool

	// Input is the child's descriptor that reads what is written to
	// [Process].Input: 0, its standard input, or the first one after 2.
	Input int
	// Feed, if not nil, is given that pipe in a goroutine of its own, which the
	// end of the child waits for. The pipe is closed when the child has ended.
	Feed func(input *os.File)
	// Outputs read the other descriptors. Together with Input, those after 2
	// leave no gap. Standard input, output and error are /dev/null when they are
	// not named.
	Outputs []Output
}

// Process is a started child.
type Process struct {
	PID     int
	Started time.Time
	Input   *os.File // the child reads it; closed when the child has ended

	cmd   *exec.Cmd
	group bool
	done  chan struct{}

	mu     sync.Mutex
	reaped bool // the number may belong to another process
}

// Start starts a child process, which is then waited for and reaped in the
// background; the functions of its Outputs are called until Done is closed.
func Start(c Command) (*Process, error) {
	cmd := exec.Command(c.Path, c.Args...)
	if c.Path == Self {
		cmd.Args[0] = os.Args[0]
	}
	cmd.Env = append([]string{}, c.Env...) // nil would be all of ours
	cmd.Dir = c.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: c.OwnGroup, Pdeathsig: c.DeathSignal}

	pipes, err := connect(cmd, c)
	if err != nil {
		return nil, err
	}
	p := &Process{Input: pipes.input, cmd: cmd, group: c.OwnGroup, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.live(c, pipes, started) // ends with the child; awaited by Done
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// live starts the process, waits for it and reaps it, all on one thread.
func (p *Process) live(c Command, pipes *pipes, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer pipes.closeOurs()

	err := children.start(p.cmd)
	pipes.closeTheirs()
	if err != nil {
		started <- err
		return
	}
	p.PID, p.Started = p.cmd.Process.Pid, time.Now()
	var open sync.WaitGroup
	for i, o := range c.Outputs {
		open.Go(func() {
			o.read(pipes.outputs[i])
			_ = pipes.outputs[i].file.Close()
		})
	}
	if c.Feed != nil {
		open.Go(func() { c.Feed(p.Input) })
	}
	started <- nil

	p.awaitExit()
	p.killGroup()
	children.reap(p.cmd)
	_ = p.Input.Close() // whoever writes to it is told so
	for _, r := range pipes.outputs {
		r.drain()
	}
	open.Wait()
	close(p.done)
}

// awaitExit returns when the process has ended, without reaping it.
func (p *Process) awaitExit() {
	for {
		err := unix.Waitid(unix.P_PID, p.PID, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// killGroup kills what is left of the group; from then on its number is not
// used any more.
func (p *Process) killGroup() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.group {
		_ = unix.Kill(-p.PID, unix.SIGKILL) // fails when nothing is left
	}
	p.reaped = true
}

// Done is closed when the process has ended, was reaped, and everything it
// wrote was passed on.
func (p *Process) Done() <-chan struct{} { return p.done }

// State tells how the process ended; valid once Done is closed.
func (p *Process) State() *os.ProcessState { return p.cmd.ProcessState }

// Send writes v to the process as a line of JSON.
func (p *Process) Send(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = p.Input.Write(append(line, '\n'))
	return err
}

// Signal sends sig to the process alone, which is no error after its end.
func (p *Process) Signal(sig os.Signal) { _ = p.cmd.Process.Signal(sig) }

// Kill kills the process, and its group if that is its own.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.reaped:
	case p.group:
		_ = unix.Kill(-p.PID, unix.SIGKILL)
	default:
		_ = p.cmd.Process.Kill()
	}
}
