package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/lifeline"
	"golang.org/x/sys/unix"
)

// selfProgram is the file this process was started from, whatever became of
// its name since.
const selfProgram = "/proc/self/exe"

// handoverLimit is how long a component may take to read its configuration.
const handoverLimit = 30 * time.Second

// child is one life of a component: one process.
type child struct {
	cmd     *exec.Cmd
	pid     int
	started time.Time

	// exited is closed when the process is reaped and all it wrote forwarded.
	// words and state are valid from then on.
	exited chan struct{}
	words  lastWords
	state  *os.ProcessState

	mu     sync.Mutex
	reaped bool // the pid may belong to somebody else
}

// pipes are the child's, by the end the supervisor keeps and the one it gives.
type pipes struct {
	lifeline, status, stdout, stderr struct{ ours, theirs *os.File }
}

func (p *pipes) open() error {
	for _, e := range []struct {
		read, write **os.File
	}{
		{&p.lifeline.theirs, &p.lifeline.ours},
		{&p.status.ours, &p.status.theirs},
		{&p.stdout.ours, &p.stdout.theirs},
		{&p.stderr.ours, &p.stderr.theirs},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			p.closeTheirs()
			p.closeOurs()
			return err
		}
		*e.read, *e.write = r, w
	}
	return nil
}

// A nil *os.File refuses to close, and a pipe's close has nothing to lose.
func (p *pipes) closeTheirs() {
	_ = errors.Join(p.lifeline.theirs.Close(), p.status.theirs.Close(), p.stdout.theirs.Close(), p.stderr.theirs.Close())
}

func (p *pipes) closeOurs() {
	_ = errors.Join(p.lifeline.ours.Close(), p.status.ours.Close(), p.stdout.ours.Close(), p.stderr.ours.Close())
}

// start starts component c. onStatus is called for each status it reports.
func (s *Supervisor) start(c Component, onStatus func(lifeline.Status)) (*child, error) {
	var p pipes
	if err := p.open(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	cmd := exec.Command(s.program, c.Args...)
	if s.program == selfProgram {
		cmd.Args[0] = os.Args[0] // what ps shows
	}
	cmd.Env = append(append(ScrubEnv(s.cfg.Env), c.Env...), lifeline.EnvVar+"=1")
	cmd.Stdout, cmd.Stderr = p.stdout.theirs, p.stderr.theirs
	cmd.ExtraFiles = []*os.File{p.lifeline.theirs, p.status.theirs} // 3 and 4
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}

	ch := &child{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error, 1)
	go s.live(ch, c, &p, onStatus, started) // ends with the child; awaited by exited
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	return ch, nil
}

// live starts the process, waits for it and reaps it, all on one thread: the
// parent-death signal is sent when the thread that forked ends.
func (s *Supervisor) live(ch *child, c Component, p *pipes, onStatus func(lifeline.Status), started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	defer p.closeOurs()
	s.nursery.Lock()
	err := ch.cmd.Start()
	if err == nil {
		s.nursery.known[ch.cmd.Process.Pid] = true
	}
	s.nursery.Unlock()
	p.closeTheirs()
	if err != nil {
		started <- err
		return
	}
	ch.pid, ch.started = ch.cmd.Process.Pid, time.Now()

	var pumps sync.WaitGroup
	stdout, stderr, status := &pipeReader{File: p.stdout.ours}, &pipeReader{File: p.stderr.ours}, &pipeReader{File: p.status.ours}
	pumps.Go(func() { s.forward(stdout, c.Name, slog.LevelInfo, nil) })
	pumps.Go(func() { s.forward(stderr, c.Name, slog.LevelError, ch.words.see) })
	pumps.Go(func() { s.readStatus(status, c.Name, onStatus) })
	pumps.Go(func() { s.handOver(p.lifeline.ours, c) })
	started <- nil

	s.reap(ch)
	_ = p.lifeline.ours.SetWriteDeadline(time.Unix(1, 0))
	for _, r := range []*pipeReader{stdout, stderr, status} {
		r.drain()
	}
	pumps.Wait()
	close(ch.exited)
}

// reap waits for the process. What is left of its group is killed while the
// process is a zombie: so long nobody else can have its number.
func (s *Supervisor) reap(ch *child) {
	for {
		err := unix.Waitid(unix.P_PID, ch.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	ch.mu.Lock()
	_ = unix.Kill(-ch.pid, unix.SIGKILL)
	ch.reaped = true
	ch.mu.Unlock()
	s.nursery.Lock()
	_ = ch.cmd.Wait() // an exit status is no error here: state tells
	delete(s.nursery.known, ch.pid)
	s.nursery.Unlock()
	ch.state = ch.cmd.ProcessState
}

// signal sends sig to the process alone: a component stops its own processes.
func (ch *child) signal(sig os.Signal) {
	_ = ch.cmd.Process.Signal(sig) // fails when it is gone already
}

// killGroup kills the process and its group.
func (ch *child) killGroup() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if !ch.reaped {
		_ = unix.Kill(-ch.pid, unix.SIGKILL)
	}
}

// refused reports whether the process exited because it cannot work with its
// arguments or configuration. Valid after exited.
func (ch *child) refused() bool {
	return ch.state != nil && ch.state.ExitCode() == 2 && ch.words.trace == ""
}

// handOver gives the component its configuration. It ends at once when the
// component dies, or reads nothing for too long.
func (s *Supervisor) handOver(w *os.File, c Component) {
	limit := time.Now().Add(handoverLimit)
	_ = w.SetWriteDeadline(limit)
	err := lifeline.Send(w, c.stopTimeout(), s.cfg.Snapshot)
	died := errors.Is(err, unix.EPIPE) || (errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(limit))
	if err != nil && !died {
		s.log.Error("hand over the configuration", "component", c.Name, "error", err)
	}
}

// readStatus reads what the component reports, until it ends.
func (s *Supervisor) readStatus(r *pipeReader, name string, onStatus func(lifeline.Status)) {
	eachLine(r, 8<<10, func(line []byte, _ int) {
		st, sample, err := lifeline.ParseStatus(line)
		switch {
		case err != nil:
			s.log.Warn("ignore a status that cannot be read", "component", name, "error", err)
		case sample == nil:
			onStatus(st)
		case s.cfg.Observe != nil:
			if err := s.cfg.Observe(*sample); err != nil {
				s.log.Warn("ignore a sample", "component", name, "error", err)
			}
		}
	})
}
