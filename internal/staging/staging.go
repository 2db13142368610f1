// Package staging is the hand-off between fetcher, runner and notifier: one
// directory per state, a task's directory moves between them by rename, and
// where it lies is the state it is in. DESIGN.md beside this file explains the
// protocol and what recovery does in each state.
//
// Every directory is 0700 and belongs to the agent's user. All access goes
// through os.Root, so that no name, however it came about, leads outside.
package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// State is where a task's directory lies.
type State string

// The states in the order a task goes through them.
const (
	Tmp        State = "tmp"        // being written by the fetcher
	Ready      State = "ready"      // complete and verified
	Running    State = "running"    // taken by the runner
	Done       State = "done"       // has an outcome; its secrets are gone
	Trash      State = "trash"      // mailed, being shredded
	Quarantine State = "quarantine" // the manifest cannot be trusted
)

// States lists all states in order.
var States = []State{Tmp, Ready, Running, Done, Trash, Quarantine}

// Role is the component that opens the directory. Each holds the state in
// which it alone works, so that two of the same role never meet.
type Role string

// The roles and, by rolesState, the state each of them holds.
const (
	Fetcher  Role = "fetcher"
	Runner   Role = "runner"
	Notifier Role = "notifier"
	// Reader holds nothing, recovers nothing and creates nothing: it is for the
	// commands that look.
	Reader Role = "reader"
)

var rolesState = map[Role]State{Fetcher: Tmp, Runner: Running, Notifier: Trash}

// Dir is an open staging directory. It is safe for use by several goroutines.
type Dir struct {
	path   string
	states map[State]*os.Root
	lock   *os.File
	left   error // why something that a predecessor left could not be cleared
}

// Open opens the staging directory at path for role, creating what is missing,
// takes the role's lock and recovers what a crash left in the state the role
// holds. The caller closes it. A lock that another process holds is an error
// that says so.
func Open(path string, role Role) (*Dir, error) {
	d := &Dir{path: path, states: make(map[State]*os.Root, len(States))}
	if err := d.open(role); err != nil {
		d.Close()
		return nil, fmt.Errorf("open staging directory %s: %w", path, err)
	}
	if err := d.recover(role); err != nil {
		d.left = fmt.Errorf("clear the trash of staging directory %s: %w", path, err)
	}
	return d, nil
}

// Left returns why something that a crash left could not be cleared away when
// the directory was opened, nil when nothing is left. It holds no secrets and
// hinders nobody; the next start tries again.
func (d *Dir) Left() error { return d.left }

func (d *Dir) open(role Role) error {
	if role != Reader {
		if err := os.MkdirAll(d.path, 0o700); err != nil {
			return err
		}
		if err := private(d.path); err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, s := range States {
		if role != Reader {
			if err := root.Mkdir(string(s), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		if d.states[s], err = root.OpenRoot(string(s)); err != nil {
			return err
		}
	}
	if role == Reader {
		return nil
	}
	if err := durable.SyncDir(root, "."); err != nil {
		return err
	}
	return d.takeLock(role)
}

// private makes sure that nobody but the agent's user can look into or change
// the staging directory: it will hold secrets.
func private(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return errors.New("is not a directory")
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to user %d, not to the agent's user %d: change its owner or set staging.dir to another directory", st.Uid, os.Geteuid())
	}
	if info.Mode().Perm() == 0o700 {
		return nil
	}
	return os.Chmod(path, 0o700)
}

// takeLock locks the role's state directory itself, so that no lock file lies
// around; the lock goes with the process, whatever way it ends.
func (d *Dir) takeLock(role Role) error {
	f, err := d.states[rolesState[role]].Open(".")
	if err != nil {
		return err
	}
	d.lock = f
	for n := 0; ; n++ {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		case n == lockTries:
			return fmt.Errorf("another %s is running on it: stop that one, or set staging.dir to another directory", role)
		}
		lockPause()
	}
}

// Held holds a lock for a moment, which must not keep a component from starting.
const lockTries = 20

var lockPause = func() { time.Sleep(10 * time.Millisecond) }

// recover finishes what the role's predecessor left half done and nobody needs
// to decide on: what lies in the trash is shredded. Drafts and running tasks are
// for their owners to go on with; see DESIGN.md.
func (d *Dir) recover(role Role) error {
	if role != Notifier {
		return nil
	}
	return d.Sweep()
}

// Sweep shreds everything in the trash: what was left there by a crash, or by a
// Discard that could not do it all. Opening the directory as its notifier does
// so; the notifier alone may do it again at any time. An entry that somebody
// else shreds meanwhile is no error.
func (d *Dir) Sweep() error {
	tasks, err := d.List(Trash)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tasks {
		errs = append(errs, t.Discard())
	}
	return errors.Join(errs...)
}

// Close releases the lock and closes the directory.
func (d *Dir) Close() error {
	var errs []error
	for _, r := range d.states {
		if r != nil {
			errs = append(errs, r.Close())
		}
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// Path returns the path the directory was opened with.
func (d *Dir) Path() string { return d.path }

// List returns the tasks in state s, oldest name first. Entries that are not
// directories are not tasks and are left out.
func (d *Dir) List(s State) ([]*Task, error) {
	f, err := d.states[s].Open(".")
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", s, err)
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", s, err)
	}
	var tasks []*Task
	for _, e := range entries {
		if e.IsDir() {
			tasks = append(tasks, &Task{dir: d, Name: e.Name(), State: s})
		}
	}
	sort.Slice(tasks, func(i, j int) bool { return tasks[i].Name < tasks[j].Name })
	return tasks, nil
}

// move renames the task's directory into state to, durably. A rename that was
// made but could not be flushed counts as made: the others see it already, and
// going on in the old place would be working in a directory that is theirs. A
// power loss may undo it, and then it is as if the agent had been killed before.
func (d *Dir) move(t *Task, to State) error {
	err := durable.Rename(d.states[t.State], t.Name, d.states[to], t.Name)
	if err != nil && !d.moved(t, to) {
		return fmt.Errorf("move %s from %s to %s: %w", t.Name, t.State, to, err)
	}
	t.State = to
	return nil
}

// moved reports whether the task's directory has left its state for another
// one: the one it was moved to, or one that somebody has taken it to since.
func (d *Dir) moved(t *Task, to State) bool {
	if t.State == to || !t.Gone() {
		return false
	}
	taken, err := d.taken(t.Name)
	return err == nil && taken
}

// statePath returns the absolute path of a state's directory.
func (d *Dir) statePath(s State) string { return filepath.Join(d.path, string(s)) }

// Where returns the state in which the task directory called name lies now, or
// an error that is fs.ErrNotExist. One that moves on meanwhile is found: the
// states are looked at in the order of its way.
func (d *Dir) Where(name string) (State, error) {
	for _, s := range States {
		_, err := d.states[s].Lstat(name)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("look for task directory %s: %w", name, err)
		}
	}
	return "", fmt.Errorf("find task directory %s in staging directory %s: %w", name, d.path, fs.ErrNotExist)
}

// Find returns the directory of a task, wherever it is on its way, or an error
// that is fs.ErrNotExist.
func (d *Dir) Find(id task.ID) (*Task, error) {
	for _, s := range States {
		tasks, err := d.List(s)
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			if !strings.Contains(t.Name, "-"+shortID(id)) {
				continue
			}
			if m, err := t.Manifest(); err == nil && m.TaskID == id {
				return t, nil
			}
		}
	}
	return nil, fmt.Errorf("find task %s in staging directory %s: %w", id, d.path, fs.ErrNotExist)
}
