package staging

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/background"
)

// Locked takes the lock as well, for a moment, which must not keep a component from
// starting: tryLock tries again this often.
const lockTries = 20

// lockPause waits between two tries. Tests replace it.
var lockPause = func() { time.Sleep(10 * time.Millisecond) }

// HeldError is the error of a lock that another process holds.
type HeldError struct {
	Holder string // what holds it: "agent", or a role
	PID    int    // of the process, 0 where it cannot be seen, as in another container
	Path   string // of the staging directory
}

func (e *HeldError) Error() string {
	process := "process " + strconv.Itoa(e.PID)
	if e.PID == 0 {
		process = "a process of another container or host"
	}
	return fmt.Sprintf("another %s (%s) is running on staging directory %s: stop that one, or set staging.dir to another directory", e.Holder, process, e.Path)
}

// relock is how often an AgentLock looks whether it holds the directory that is
// there. Tests set it lower.
var relock = 10 * time.Second

// AgentLock is a whole agent's lock on its staging directory. When another
// directory comes to lie at the path, as after a removal, that one is locked.
type AgentLock struct {
	path   string
	file   *os.File // the worker's until it is stopped
	worker *background.Worker
}

// LockAgent opens the staging directory at path, creating what is missing of it,
// and locks it for the whole agent: two agents cannot work in one directory,
// whatever path they know it by. The caller closes the lock; it goes with the
// process, too. The error is a *HeldError while another agent runs.
func LockAgent(path string) (*AgentLock, error) {
	root, err := openOwn(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	l := &AgentLock{path: path}
	if l.file, err = tryLock(root, "agent", path); err != nil {
		return nil, err
	}
	l.worker = background.Every(context.Background(), relock, func(context.Context) bool {
		l.renew()
		return true
	})
	return l, nil
}

// renew locks the directory at the path if it is another one than the one that is
// locked. What stands in the way the components will say: they work in it.
func (l *AgentLock) renew() {
	held, err := l.file.Stat()
	if err != nil {
		return
	}
	there, err := os.Lstat(l.path)
	if err != nil || os.SameFile(held, there) || Check(l.path) != nil {
		return
	}
	root, err := os.OpenRoot(l.path)
	if err != nil {
		return
	}
	defer root.Close()
	if next, err := tryLock(root, "agent", l.path); err == nil {
		l.file.Close()
		l.file = next
	}
}

// Close gives the lock back.
func (l *AgentLock) Close() error {
	l.worker.Stop()
	return l.file.Close()
}

// AgentHolds returns what LockAgent would, without locking or creating anything:
// a *HeldError while an agent runs on the directory at path, nil otherwise.
func AgentHolds(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil //nolint:nilerr // whoever cannot look cannot tell; Check says what is wrong
	}
	defer f.Close()
	if held, err := isLocked(f); err != nil || !held {
		return err
	}
	return &HeldError{Holder: "agent", PID: holder(f), Path: path}
}

// tryLock locks the directory itself, so that no lock file lies around. The lock
// is held until the file is closed, and goes with the process, whatever way it
// ends.
func tryLock(root *os.Root, who, path string) (*os.File, error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	for n := 0; ; n++ {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EWOULDBLOCK) && n < lockTries:
			lockPause()
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			err = &HeldError{Holder: who, PID: holder(f), Path: path}
		default:
			err = fmt.Errorf("lock staging directory %s: %w", path, err)
		}
		return nil, errors.Join(err, f.Close())
	}
}

// isLocked reports whether another process holds a lock on f.
func isLocked(f *os.File) (bool, error) {
	// A shared lock, given back at once: it disturbs nobody who looks as well.
	err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Locked reports whether a process holds role's lock on the directory: whether
// that component is running on it.
func (d *Dir) Locked(role Role) (bool, error) {
	root, err := d.root(rolesState[role])
	if err != nil {
		return false, err
	}
	f, err := root.Open(".")
	if err != nil {
		return false, err
	}
	defer f.Close()
	return isLocked(f)
}

// holder returns the process that holds the lock on f, 0 where the kernel does not
// tell. A line of /proc/locks is, as proc_locks(5) has it,
//
//	1: FLOCK  ADVISORY  WRITE 1234 fe:01:131074 0 EOF
func holder(f *os.File) int {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer locks.Close()
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 5 && fields[1] == "FLOCK" && fields[3] == "WRITE" && fields[5] == file {
			pid, _ := strconv.Atoi(fields[4])
			return max(pid, 0)
		}
	}
	return 0
}
