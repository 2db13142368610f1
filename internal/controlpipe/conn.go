package controlpipe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
	"golang.org/x/sys/unix"
)

// statusTimeout is how long Ready waits for a supervisor that does not read.
const statusTimeout = time.Second

// sampleTimeout is the same for Record: nothing may wait long for a number.
const sampleTimeout = 50 * time.Millisecond

// Conn is a component's end of the control pipe. In a process that the supervisor
// did not start, it is one that holds no snapshot and never ends.
type Conn struct {
	snapshot   []byte
	parentGone chan struct{} // nil when standalone: receiving blocks for ever

	pipe    *os.File // nil when standalone
	status  *os.File // nil when standalone
	watched sync.WaitGroup

	mu       sync.Mutex // guards what follows and writes to status
	reported bool       // last was delivered
	last     string     // the last reason
	due      time.Time  // when Alive has promised to be called again
}

// FromEnv returns the process's end of the control pipe. Call it once and first in
// main, before any other process is started: until then descriptors 3 and 4
// would be inherited by it. It fails when the supervisor is of another version
// or went away before the snapshot was complete.
//
// In a supervised process FromEnv also catches SIGPIPE for good: standard
// error is a pipe to the supervisor, and without this the first log line after
// the supervisor's death would kill a runner in the middle of its deployment.
func FromEnv() (*Conn, error) {
	if os.Getenv(EnvVar) != "1" {
		return &Conn{}, nil
	}
	if err := os.Unsetenv(EnvVar); err != nil {
		return nil, fmt.Errorf("open control pipe: %w", err)
	}
	pipe, err := inherit(SnapshotFD, "control-pipe")
	if err != nil {
		return nil, err
	}
	status, err := inherit(StatusFD, "status")
	if err != nil {
		return nil, err
	}
	// Notify rather than Ignore: an ignored signal stays ignored in every
	// program started from here. Nobody reads the channel; sends never block.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	// The supervisor executes /proc/self/exe, and the kernel named us "exe".
	// Only for ps and top: a failure does not matter.
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)

	limit, snapshot, err := receive(pipe)
	if err != nil {
		return nil, err
	}
	c := &Conn{snapshot: snapshot, parentGone: make(chan struct{}), pipe: pipe, status: status}
	c.watched.Go(func() { c.watch(limit) })
	return c, nil
}

// inherit takes over an inherited pipe: not for grandchildren, and read by the
// poller instead of by a blocked thread.
func inherit(fd int, name string) (*os.File, error) {
	unix.CloseOnExec(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("open %s: stat descriptor %d: %w; unset %s to run by hand", name, fd, err, EnvVar)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, fmt.Errorf("open %s: descriptor %d is not a pipe; unset %s to run by hand", name, fd, EnvVar)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// watch ends at the control pipe's end of file, or at Close.
func (c *Conn) watch(limit time.Duration) {
	if _, err := io.Copy(io.Discard, c.pipe); errors.Is(err, os.ErrClosed) {
		return
	}
	close(c.parentGone)
	if limit > 0 {
		// Not awaited by anyone: it ends the process, or the process ends first.
		time.AfterFunc(limit, killGroup)
	}
}

// killGroup ends this process and what is left of its group.
func killGroup() {
	if unix.Getpgrp() == unix.Getpid() {
		_ = unix.Kill(0, unix.SIGKILL)
	}
	os.Exit(1)
}

// Supervised reports whether the supervisor started this process.
func (c *Conn) Supervised() bool { return c.pipe != nil }

// Snapshot returns the configuration the supervisor handed over, nil when the
// process is not supervised. It holds secrets. The bytes belong to the Conn.
func (c *Conn) Snapshot() []byte { return c.snapshot }

// ParentGone is closed when the supervisor is gone; the component then has to stop
// within its stop limit. It is never closed in a process that is not supervised.
func (c *Conn) ParentGone() <-chan struct{} { return c.parentGone }

// Ready reports that the component is ready (reason ""), or why it is not.
// The reason is shown to operators: no secrets. Saying the same again costs
// nothing. Unsupervised, it tells the service manager, if there is one. A
// report that cannot be delivered is forgotten, and the next call repeats it.
func (c *Conn) Ready(reason string) {
	reason = task.SafeText(reason, maxReason)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reported && c.last == reason {
		return
	}
	c.reported, c.last = c.report(reason) == nil, reason
}

func (c *Conn) report(reason string) error {
	if !c.Supervised() {
		state := "READY=1\nSTATUS=ready"
		if reason != "" {
			state = "STATUS=" + strings.ReplaceAll(reason, "\n", " ")
		}
		return Notify(NotifySocket(), state)
	}
	return c.write(Status{Ready: reason == "", Reason: reason}, statusTimeout)
}

// Record reports a sample for the supervisor's metrics; it is a telemetry.Recorder.
// Unsupervised, and when the supervisor does not read, the sample is forgotten.
func (c *Conn) Record(s telemetry.Sample) {
	if !c.Supervised() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.write(sampleLine{&s}, sampleTimeout)
}

// write writes one line, which a pipe takes whole or not at all as long as it
// is shorter than 4 KiB. The timeout is for a pipe that is full: one with room takes
// the line however slow this process is.
func (c *Conn) write(v any, timeout time.Duration) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	line = append(line, '\n')
	n, err := c.tryWrite(line)
	if err == nil && n < len(line) {
		if err = c.status.SetWriteDeadline(time.Now().Add(timeout)); err == nil {
			_, err = c.status.Write(line[n:])
		}
	}
	if err != nil {
		return fmt.Errorf("report status: %w", err)
	}
	return nil
}

// tryWrite writes what the pipe has room for, and waits for nothing.
func (c *Conn) tryWrite(line []byte) (n int, err error) {
	if err := c.status.SetWriteDeadline(time.Time{}); err != nil {
		return 0, err // with one that has passed, nothing would be tried
	}
	raw, err := c.status.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		n, failed = unix.Write(int(fd), line)
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case failed == nil:
		return n, nil
	case errors.Is(failed, unix.EAGAIN), errors.Is(failed, unix.EINTR):
		return 0, nil
	default:
		return 0, failed
	}
}

// Close lets go of the control pipe: afterwards ParentGone is never closed and Ready
// reaches nobody. A process that is about to exit need not call it.
func (c *Conn) Close() error {
	if !c.Supervised() {
		return nil
	}
	err := errors.Join(c.pipe.Close(), c.status.Close())
	c.watched.Wait()
	return err
}
