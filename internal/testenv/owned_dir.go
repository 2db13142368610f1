package testenv

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ownedDir is a temporary directory whose owner holds a lock as long as it
// lives, so that another process can tell a leftover from one in use. The
// kernel gives the lock back however the owner dies.
type ownedDir struct {
	path  string
	lock  *os.File
	owner *syscall.Credential // nil: ourselves
}

const ownerLock = "owner.lock"

// newOwnedDir creates a directory, after removing those of the same prefix
// whose owners are dead.
func newOwnedDir(prefix string) (*ownedDir, error) {
	owner, err := serverUser()
	if err != nil {
		return nil, err
	}
	// One process at a time sweeps and creates: a directory that is not locked
	// yet would look like a leftover.
	gate, err := os.OpenFile(filepath.Join(os.TempDir(), prefix+"gate-"+strconv.Itoa(os.Getuid())), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of temporary directories: %w", err)
	}
	defer gate.Close()
	if err := syscall.Flock(int(gate.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock temporary directories: %w", err)
	}
	sweep(prefix)

	path, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, fmt.Errorf("create temporary directory: %w", err)
	}
	d := &ownedDir{path: path, owner: owner}
	if d.lock, err = os.Create(filepath.Join(path, ownerLock)); err != nil {
		os.RemoveAll(path)
		return nil, fmt.Errorf("create lock: %w", err)
	}
	if err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		d.remove()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if owner != nil {
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			d.remove()
			return nil, fmt.Errorf("give %s to the server's user: %w", path, err)
		}
	}
	return d, nil
}

// write creates a private file that the server's user owns.
func (d *ownedDir) write(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if d.owner != nil {
		if err := os.Chown(path, int(d.owner.Uid), int(d.owner.Gid)); err != nil {
			return fmt.Errorf("give %s to the server's user: %w", filepath.Base(path), err)
		}
	}
	return nil
}

func (d *ownedDir) remove() {
	os.RemoveAll(d.path)
	if d.lock != nil {
		d.lock.Close()
	}
}

// sweep removes directories whose owners died, and what they had an engine hold.
// A server below one of them got its parent-death signal; where that failed, it
// is ended here.
func sweep(prefix string) {
	locks, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*", ownerLock))
	for _, path := range locks {
		lock, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			endServer(filepath.Join(filepath.Dir(path), "data"))
			removeClaimed(filepath.Dir(path))
			os.RemoveAll(filepath.Dir(path))
		}
		lock.Close()
	}
}

// endServer ends the PostgreSQL server whose data directory is data, if the
// process that its pid file names really is that one.
func endServer(data string) {
	content, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 {
		return
	}
	cmdline, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil || !bytes.Contains(cmdline, []byte(data)) {
		return
	}
	_ = syscall.Kill(pid, syscall.SIGQUIT)
}
