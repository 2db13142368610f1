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

// errLocked says that a draft is being written.
var errLocked = errors.New("another process is writing the draft")

// lockDraft makes t, which lies in tmp, this process's draft. The error is
// errLocked while another one writes it, and fs.ErrNotExist when it is gone.
func lockDraft(t *Task) (_ *Draft, err error) {
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
		return nil, errLocked
	case err != nil:
		return nil, fmt.Errorf("lock draft %s: %w", t.Name, err)
	case t.Missing(): // its writer has published it
		return nil, fs.ErrNotExist
	}
	return d, nil
}

// createTries is how often Create begins again when its directory is taken for a
// leftover before it is locked.
const createTries = 100

// Create begins a directory named name, which comes from Name; a counter is
// added when one of that name lies in any state already.
func (d *Dir) Create(name string) (*Draft, error) {
	for tries := 1; ; tries++ {
		unique, err := d.unused(name)
		if err != nil {
			return nil, err
		}
		var draft *Draft
		tmp, err := d.root(Tmp)
		if err == nil {
			err = durable.Mkdir(tmp, unique, 0o700)
		}
		if err == nil {
			draft, err = lockDraft(&Task{dir: d, Name: unique, State: Tmp})
		}
		switch {
		case err == nil:
			return draft, nil
		case tries < createTries && (errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist)):
			// A fetcher that clears leftovers away was faster than the lock.
		default:
			return nil, fmt.Errorf("create task directory %s: %w", unique, err)
		}
	}
}

// unused returns name, or name with a counter when it exists in any state.
func (d *Dir) unused(name string) (string, error) {
	for n := 1; n < 1000; n++ {
		candidate := name
		if n > 1 {
			candidate = fmt.Sprintf("%s.%d", name, n)
		}
		_, err := d.Where(candidate)
		if errors.Is(err, fs.ErrNotExist) {
			return candidate, nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("find a free name for task directory %s: 1000 of that name exist; look into quarantine", name)
}

// Drafts returns what lies in tmp and nobody writes: drafts whose writer died.
// The caller publishes, removes or, to leave it as it is, closes each. With an
// error it returns those it could open, nil only when tmp itself could not be
// listed.
func (d *Dir) Drafts() ([]*Draft, error) {
	tasks, err := d.List(Tmp)
	if err != nil {
		return nil, err
	}
	drafts := []*Draft{}
	var errs []error
	for _, t := range tasks {
		draft, err := lockDraft(t)
		switch {
		case err == nil:
			drafts = append(drafts, draft)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errLocked):
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

// Renew begins the draft anew, empty, if somebody has removed its directory, and
// reports whether that was so.
func (d *Draft) Renew() (renewed bool, err error) {
	if !d.t.Missing() {
		return false, nil
	}
	next, err := d.t.dir.Create(d.t.Name)
	if err != nil {
		return false, err
	}
	_ = d.Close()
	next.t.onEvent = d.t.onEvent
	*d.t = *next.t
	d.root, d.lock = next.root, next.lock
	return true, nil
}

// SaveManifest writes durably whose claim the draft is: the manifest as far as it
// is known when the claim is made. It is written before the claim is committed, so
// that the claim is known after a crash that follows the commit.
func (d *Draft) SaveManifest(m Manifest) error { return d.writeManifest(m) }

// Manifest returns what SaveManifest wrote, or an error that is fs.ErrNotExist
// when the draft's writer died before that.
func (d *Draft) Manifest() (*Manifest, error) { return d.t.Manifest() }

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

// Root is the directory being written. It is closed by Publish, Remove and
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

// Remove shreds the draft and closes it.
func (d *Draft) Remove() error {
	tmp, err := d.t.dir.root(Tmp)
	if err == nil {
		err = shred.Tree(tmp, d.t.Name)
	}
	if closed := d.Close(); !errors.Is(closed, os.ErrClosed) {
		err = errors.Join(err, closed)
	}
	return err
}

// RemoveStaged shreds one thing that was staged.
func (d *Draft) RemoveStaged(name string) error { return shred.Tree(d.root, name) }

// Reset shreds what has been staged so far, so that staging can begin anew or
// the draft become a rejection. The manifest, the timeline and an operator's
// request to cancel stay.
func (d *Draft) Reset() error {
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
