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
	"sync"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// State is where a task's directory lies.
type State string

// The states in the order a task goes through them.
const (
	Tmp        State = "tmp"        // being written by the fetcher
	Ready      State = "ready"      // complete and verified
	Running    State = "running"    // started by the runner
	Done       State = "done"       // has an outcome; its secrets are gone
	Trash      State = "trash"      // mailed, being shredded
	Quarantine State = "quarantine" // the manifest or outcome cannot be trusted
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
//
// One that is removed, or mounted anew, is opened again when it is next used
// (reopen.go).
type Dir struct {
	path        string
	role        Role
	recoveryErr error // why something that a predecessor left could not be cleared

	mu     sync.Mutex // guards what follows
	states map[State]*os.Root
	lock   *os.File
	mount  string // the mount point that the directory was on when it was opened
}

// Open opens the staging directory at path for role, creating what is missing,
// takes the role's lock and, as Notifier, shreds what a crash left in the trash.
// The caller closes it. A lock that another process holds is an error that says so,
// and so is a directory that Check refuses.
func Open(path string, role Role) (*Dir, error) {
	d := &Dir{path: path, role: role, states: make(map[State]*os.Root, len(States))}
	if err := d.open(); err != nil {
		d.Close()
		var held *HeldError
		if errors.As(err, &held) { // which says all
			return nil, err
		}
		return nil, fmt.Errorf("open staging directory %s: %w", path, err)
	}
	if role == Notifier { // drafts and running tasks are continued by their owners
		if err := d.Sweep(); err != nil {
			d.recoveryErr = fmt.Errorf("clear the trash of staging directory %s: %w", path, err)
		}
	}
	return d, nil
}

// RecoveryErr returns why something that a crash left could not be cleared away
// when the directory was opened, nil when nothing is left. What is left holds no
// secrets and hinders nobody; the next start tries again.
func (d *Dir) RecoveryErr() error { return d.recoveryErr }

func (d *Dir) open() error {
	if err := d.openStates(States); err != nil {
		return err
	}
	if d.role == Reader {
		return nil
	}
	var err error
	d.lock, err = tryLock(d.states[rolesState[d.role]], string(d.role), d.path)
	return err
}

// openStates opens the directories of states, in place of those that are open. It
// creates them, and all above them, where they are missing and d is not for a
// reader.
func (d *Dir) openStates(states []State) error {
	root, err := d.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	created := false
	for _, s := range states {
		if d.role != Reader {
			err := root.Mkdir(string(s), 0o700)
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			created = created || err == nil
		}
		state, err := root.OpenRoot(string(s))
		if errors.Is(err, fs.ErrPermission) && d.role == Notifier && hidden(s) {
			continue
		}
		if err != nil {
			return err
		}
		d.states[s] = state
	}
	d.mount = MountOf(d.path)
	if !created {
		return nil
	}
	return durable.SyncDir(root, ".")
}

// hidden reports whether the notifier works without state s, in which payloads and
// secrets lie: its systemd unit keeps it out of there.
func hidden(s State) bool { return s == Tmp || s == Ready || s == Running }

// openRoot opens the staging directory itself.
func (d *Dir) openRoot() (*os.Root, error) {
	if d.role == Reader {
		return os.OpenRoot(d.path)
	}
	return openOwn(d.path)
}

// Sweep shreds everything in the trash: what was left there by a crash, or by a
// Remove that could not shred it all. Opening the directory as its notifier does
// so; the notifier alone may do it again at any time. An entry that somebody
// else shreds meanwhile is no error.
func (d *Dir) Sweep() error {
	tasks, err := d.List(Trash)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tasks {
		errs = append(errs, t.Remove())
	}
	return errors.Join(errs...)
}

// Close releases the lock and closes the directory.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, r := range d.states {
		errs = append(errs, r.Close())
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
	root, err := d.root(s)
	if err != nil {
		return nil, err
	}
	f, err := root.Open(".")
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
	from, err := d.root(t.State)
	if err != nil {
		return err
	}
	target, err := d.root(to)
	if err != nil {
		return err
	}
	err = durable.Rename(from, t.Name, target, t.Name)
	if err != nil && !d.hasMoved(t, to) {
		return fmt.Errorf("move %s from %s to %s: %w", t.Name, t.State, to, err)
	}
	t.State = to
	return nil
}

// hasMoved reports whether the task's directory has left its state for another
// one: the one it was moved to, or one that somebody has moved it to since.
func (d *Dir) hasMoved(t *Task, to State) bool {
	if t.State == to || !t.Missing() {
		return false
	}
	_, err := d.Where(t.Name)
	return err == nil
}

// statePath returns the absolute path of a state's directory.
func (d *Dir) statePath(s State) string { return filepath.Join(d.path, string(s)) }

// Where returns the state in which the task directory called name lies now, or
// an error that is fs.ErrNotExist. One that moves on meanwhile is found: the
// states are looked at in the order of its way.
func (d *Dir) Where(name string) (State, error) {
	for _, s := range States {
		root, err := d.root(s)
		if err == nil {
			_, err = root.Lstat(name)
		}
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
