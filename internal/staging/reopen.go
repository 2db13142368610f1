package staging

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// ErrUnusable means that the staging directory was removed, replaced or unmounted
// while it was open, and cannot be opened again as it is now.
var ErrUnusable = errors.New("the staging directory cannot be used")

// settle waits until whoever removes or replaces the directory is likely to be
// done: rm -rf fails over a directory that comes back. Tests replace it.
var settle = func() { time.Sleep(time.Second) }

// root returns the directory of a state, open; it belongs to d. Every use asks for
// it anew: where another directory lies at its path than the one that was opened,
// or none, all that is missing is opened again as Open does. A handle of one that
// was removed would go on working, on nothing that anybody sees.
func (d *Dir) root(s State) (*os.Root, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.role == Reader { // which need not wait: it creates nothing
		if !d.isOpen(s) {
			if err := d.openStates([]State{s}); err != nil {
				return nil, err
			}
		}
		return d.states[s], nil
	}
	if d.isOpen(s) && d.isOpen(rolesState[d.role]) {
		return d.states[s], nil
	}
	settle()
	if err := d.reopen(); err != nil {
		return nil, fmt.Errorf("%w: open staging directory %s again: %w", ErrUnusable, d.path, err)
	}
	return d.states[s], nil
}

// isOpen reports whether the directory that was opened for a state is the one that
// lies at its path. The caller holds d.mu.
func (d *Dir) isOpen(s State) bool {
	if d.states[s] == nil { // hidden
		return false
	}
	held, err := d.states[s].Stat(".")
	if err != nil {
		return false
	}
	there, err := os.Lstat(d.statePath(s))
	return err == nil && os.SameFile(held, there)
}

// reopen opens what is not open any more, and takes the role's lock if it was on
// that. Who works with a former handle may finish: it is closed when nobody holds it
// any more. The caller holds d.mu.
func (d *Dir) reopen() (err error) {
	if err := CheckMounted(d.path, d.mount); err != nil {
		return err
	}
	own := rolesState[d.role]
	former := d.states[own]
	defer func() {
		if err != nil { // without the lock nothing is open
			d.states[own] = former
		}
	}()
	gone := slices.DeleteFunc(slices.Clone(States), d.isOpen)
	if err := d.openStates(gone); err != nil {
		return err
	}
	if !slices.Contains(gone, own) {
		return nil
	}
	lock, err := tryLock(d.states[own], string(d.role), d.path)
	if err != nil {
		return err
	}
	d.lock.Close()
	d.lock = lock
	return nil
}
