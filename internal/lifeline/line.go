package lifeline

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

	"github.com/wrktalk/wrktalk-agent/internal/meter"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"golang.org/x/sys/unix"
)

// statusPatience is how long Ready waits for a supervisor that does not read.
const statusPatience = time.Second

// samplePatience is the same for Measure: nothing may wait long for a number.
const samplePatience = 50 * time.Millisecond

// Line is a component's end of the lifeline. In a process that the supervisor
// did not start, it is one that holds no snapshot and never ends.
type Line struct {
	snapshot []byte
	gone     chan struct{} // nil when standalone: receiving blocks for ever

	pipe    *os.File // nil when standalone
	status  *os.File // nil when standalone
	watched sync.WaitGroup

	mu       sync.Mutex // guards reported, last and writes to status
	reported bool
	last     string
}

// FromEnv returns the process's end of the lifeline. Call it once and first in
// main, before any other process is started: until then descriptors 3 and 4
// would be inherited by it. It fails when the supervisor is of another version
// or went away before the snapshot was complete.
//
// In a supervised process FromEnv also catches SIGPIPE for good: standard
// error is a pipe to the supervisor, and without this the first log line after
// the supervisor's death would kill a runner in the middle of its deployment.
func FromEnv() (*Line, error) {
	if os.Getenv(EnvVar) != "1" {
		return &Line{}, nil
	}
	if err := os.Unsetenv(EnvVar); err != nil {
		return nil, fmt.Errorf("open lifeline: %w", err)
	}
	pipe, err := inherit(SnapshotFD, "lifeline")
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
	l := &Line{snapshot: snapshot, gone: make(chan struct{}), pipe: pipe, status: status}
	l.watched.Go(func() { l.watch(limit) })
	return l, nil
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

// watch ends at the lifeline's end of file, or at Close.
func (l *Line) watch(limit time.Duration) {
	if _, err := io.Copy(io.Discard, l.pipe); errors.Is(err, os.ErrClosed) {
		return
	}
	close(l.gone)
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
func (l *Line) Supervised() bool { return l.pipe != nil }

// Snapshot returns the configuration the supervisor handed over, nil when the
// process is not supervised. It holds secrets. The bytes belong to the Line.
func (l *Line) Snapshot() []byte { return l.snapshot }

// Gone is closed when the supervisor is gone; the component then has to stop
// within its stop limit. It is never closed in a process that is not supervised.
func (l *Line) Gone() <-chan struct{} { return l.gone }

// Ready reports that the component is ready (reason ""), or why it is not.
// The reason is shown to operators: no secrets. Saying the same again costs
// nothing. Unsupervised, it tells the service manager, if there is one. A
// report that cannot be delivered is forgotten, and the next call repeats it.
func (l *Line) Ready(reason string) {
	reason = task.SafeText(reason, MaxReason)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reported && l.last == reason {
		return
	}
	l.reported, l.last = l.report(reason) == nil, reason
}

func (l *Line) report(reason string) error {
	if !l.Supervised() {
		state := "READY=1\nSTATUS=ready"
		if reason != "" {
			state = "STATUS=" + strings.ReplaceAll(reason, "\n", " ")
		}
		return Notify(NotifySocket(), state)
	}
	return l.write(Status{Ready: reason == "", Reason: reason}, statusPatience)
}

// Measure reports a sample for the supervisor's metrics; it is a meter.Meter.
// Unsupervised, and when the supervisor does not read, the sample is forgotten.
func (l *Line) Measure(s meter.Sample) {
	if !l.Supervised() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.write(measured{&s}, samplePatience)
}

// write writes one line, which a pipe takes whole or not at all as long as it
// is shorter than 4 KiB. Patience is for a pipe that is full: one with room takes
// the line however slow this process is.
func (l *Line) write(v any, patience time.Duration) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	line = append(line, '\n')
	n, err := l.tryWrite(line)
	if err == nil && n < len(line) {
		if err = l.status.SetWriteDeadline(time.Now().Add(patience)); err == nil {
			_, err = l.status.Write(line[n:])
		}
	}
	if err != nil {
		return fmt.Errorf("report status: %w", err)
	}
	return nil
}

// tryWrite writes what the pipe has room for, and waits for nothing.
func (l *Line) tryWrite(line []byte) (n int, err error) {
	if err := l.status.SetWriteDeadline(time.Time{}); err != nil {
		return 0, err // with one that has passed, nothing would be tried
	}
	raw, err := l.status.SyscallConn()
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

// Close lets go of the lifeline: afterwards Gone is never closed and Ready
// reaches nobody. A process that is about to exit need not call it.
func (l *Line) Close() error {
	if !l.Supervised() {
		return nil
	}
	err := errors.Join(l.pipe.Close(), l.status.Close())
	l.watched.Wait()
	return err
}
