package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/shred"
)

// Draft is a task's directory that is being written. Its writer holds a lock on
// it, which ends with the writer's process: a draft without one is a leftover.
type Draft struct {
	t    *Task
	root *os.Root
	lock *os.File
}

// errHeld says that a draft is being written.
var errHeld = errors.New("somebody else holds the draft")

// hold makes t, which lies in tmp, this process's draft. The error is errHeld
// while another one writes it, and fs.ErrNotExist when it is there no more.
func hold(t *Task) (_ *Draft, err error) {
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	d := &Draft{t: t, root: root}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.lock, err = root.Open("."); err != nil {
		return nil, fmt.Errorf("lock draft %s: %w", t.Name, err)
	}
	switch err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errHeld
	case err != nil:
		return nil, fmt.Errorf("lock draft %s: %w", t.Name, err)
	case t.Gone(): // its writer let go of it by publishing it
		return nil, fs.ErrNotExist
	}
	return d, nil
}

// Create begins a directory named name, which comes from Name; a counter is
// added when one of that name lies in any state already.
func (d *Dir) Create(name string) (*Draft, error) {
	for {
		unique, err := d.unused(name)
		if err != nil {
			return nil, err
		}
		if err := durable.Mkdir(d.states[Tmp], unique, 0o700); err != nil {
			return nil, fmt.Errorf("create task directory %s: %w", unique, err)
		}
		draft, err := hold(&Task{dir: d, Name: unique, State: Tmp})
		if errors.Is(err, errHeld) || errors.Is(err, fs.ErrNotExist) {
			continue // who clears leftovers away was faster than the lock
		}
		return draft, err
	}
}

// unused returns name, or name with a counter when it is taken in any state.
func (d *Dir) unused(name string) (string, error) {
	for n := 1; n < 1000; n++ {
		candidate := name
		if n > 1 {
			candidate = fmt.Sprintf("%s.%d", name, n)
		}
		taken, err := d.taken(candidate)
		if err != nil {
			return "", fmt.Errorf("look for task directory %s: %w", candidate, err)
		}
		if !taken {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("find a free name for task directory %s: 1000 of that name exist; look into quarantine", name)
}

func (d *Dir) taken(name string) (bool, error) {
	for _, s := range States {
		_, err := d.states[s].Lstat(name)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// Drafts returns what lies in tmp and nobody writes: drafts whose writer died.
// Each is taken up again, discarded or, to leave it alone, closed. With an error it
// returns those it could open, nil only when tmp itself could not be listed.
func (d *Dir) Drafts() ([]*Draft, error) {
	tasks, err := d.List(Tmp)
	if err != nil {
		return nil, err
	}
	drafts := []*Draft{}
	var errs []error
	for _, t := range tasks {
		draft, err := hold(t)
		switch {
		case err == nil:
			drafts = append(drafts, draft)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errHeld):
			errs = append(errs, err)
		}
	}
	return drafts, errors.Join(errs...)
}

// Close leaves the draft as it is.
func (d *Draft) Close() error {
	err := d.root.Close()
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// SetClaim keeps durably whose claim the draft is: the manifest as far as it is
// known when the claim is made. It is written before the claim is committed, so
// that a crash right after the commit forgets nothing.
func (d *Draft) SetClaim(m Manifest) error { return d.writeManifest(m) }

// Claim returns what SetClaim kept, or an error that is fs.ErrNotExist when the
// draft's fetcher died before it made its claim.
func (d *Draft) Claim() (*Manifest, error) { return d.t.Manifest() }

func (d *Draft) writeManifest(m Manifest) error {
	m.Schema = ManifestSchema
	err := m.check()
	if err == nil {
		err = d.t.writeJSON(ManifestFile, m, len(m.Files) <= indentedFiles)
	}
	if err != nil {
		return fmt.Errorf("write manifest of %s: %w", d.t.Name, err)
	}
	return nil
}

// Root is the directory being written. It is closed by Publish, Discard and
// Close.
func (d *Draft) Root() *os.Root { return d.root }

// Task returns the directory's handle, for its timeline.
func (d *Draft) Task() *Task { return d.t }

// Publish writes the complete manifest, after everything it lists has been
// written durably, and moves the directory to ready. On an error the directory
// is still a draft; ErrTooLarge says that no reader would take the manifest.
func (d *Draft) Publish(m Manifest) (*Task, error) {
	if err := d.writeManifest(m); err != nil {
		return nil, err
	}
	if err := d.t.dir.move(d.t, Ready); err != nil {
		return nil, err
	}
	return d.t, d.Close()
}

// Discard shreds the draft and removes it.
func (d *Draft) Discard() error {
	err := shred.Tree(d.t.dir.states[Tmp], d.t.Name)
	if closed := d.Close(); !errors.Is(closed, os.ErrClosed) {
		err = errors.Join(err, closed)
	}
	return err
}

// Drop shreds one thing that was staged.
func (d *Draft) Drop(name string) error { return shred.Tree(d.root, name) }

// Clear shreds what has been staged so far, so that staging can begin anew or
// the draft become a refusal. The claim, the timeline and an operator's wish
// stay.
func (d *Draft) Clear() error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if name != EventsFile && name != ManifestFile && name != CancelFile {
			errs = append(errs, shred.Tree(d.root, name))
		}
	}
	return errors.Join(errs...)
}
