package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/shred"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Task is a task's directory. Its methods that move it change State; it belongs
// to one goroutine at a time.
type Task struct {
	dir   *Dir
	Name  string
	State State

	onEvent func(task.Event)
}

// Path returns the absolute path of the task's directory or, with names, of
// something in it.
func (t *Task) Path(names ...string) string {
	return filepath.Join(append([]string{t.dir.statePath(t.State), t.Name}, names...)...)
}

// Root opens the task's directory. The caller closes it.
func (t *Task) Root() (*os.Root, error) {
	state, err := t.dir.root(t.State)
	if err != nil {
		return nil, err
	}
	root, err := state.OpenRoot(t.Name)
	if err != nil {
		return nil, fmt.Errorf("open task directory %s: %w", t.Name, err)
	}
	return root, nil
}

// Missing reports whether the directory no longer lies where its state says, as
// when somebody removed it by hand.
func (t *Task) Missing() bool {
	root, err := t.dir.root(t.State)
	if err == nil {
		_, err = root.Lstat(t.Name)
	}
	return errors.Is(err, fs.ErrNotExist)
}

// withRoot calls f on the opened directory and names it in the error.
func (t *Task) withRoot(f func(*os.Root) error) error {
	root, err := t.Root()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := f(root); err != nil {
		return fmt.Errorf("task directory %s: %w", t.Name, err)
	}
	return nil
}

// Manifest reads the manifest and checks that it is one this agent understands.
func (t *Task) Manifest() (*Manifest, error) {
	m := new(Manifest)
	err := t.withRoot(func(root *os.Root) error {
		if err := readJSON(root, ManifestFile, m); err != nil {
			return err
		}
		return m.check()
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Verify compares every staged file with the manifest: type, size, digest,
// mode, owner, and that nothing was added. The error names the first file that
// differs.
func (t *Task) Verify(m *Manifest) error {
	root, err := t.Root()
	if err != nil {
		return err
	}
	defer root.Close()
	return verify(root, m)
}

// Start moves a ready task to running: the rename is the claim.
func (t *Task) Start() error { return t.dir.move(t, Running) }

// Attempts is what the runner records about its own attempts, so that a task which
// brings the agent down is not tried for ever.
type Attempts struct {
	Count     int       `json:"attempts"` // deployments begun, this one included
	StartedAt time.Time `json:"started_at"`
}

// Attempts returns what SaveAttempts wrote; the zero value when nothing was written.
func (t *Task) Attempts() (Attempts, error) {
	var a Attempts
	err := t.withRoot(func(root *os.Root) error { return readJSON(root, AttemptsFile, &a) })
	if errors.Is(err, fs.ErrNotExist) {
		return Attempts{}, nil
	}
	return a, err
}

// SaveAttempts writes a durably.
func (t *Task) SaveAttempts(a Attempts) error { return t.writeJSON(AttemptsFile, a, true) }

// Outcome returns the outcome, or an error that is fs.ErrNotExist when there is
// none yet.
func (t *Task) Outcome() (task.Outcome, error) {
	var o task.Outcome
	err := t.withRoot(func(root *os.Root) error {
		if err := readJSON(root, OutcomeFile, &o); err != nil {
			return err
		}
		if o.Schema < 1 || o.Schema > task.OutcomeSchema {
			return fmt.Errorf("outcome has schema %d; this agent reads up to %d", o.Schema, task.OutcomeSchema)
		}
		return nil
	})
	return o, err
}

// SaveOutcome writes the outcome durably. From here on the task is never run
// again, whatever happens.
func (t *Task) SaveOutcome(o task.Outcome) error { return t.writeJSON(OutcomeFile, o, true) }

func (t *Task) writeJSON(name string, v any, indent bool) error {
	data, err := encode(v, indent)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return t.withRoot(func(root *os.Root) error { return durable.WriteFile(root, name, data, 0o600) })
}

// ShredSecrets shreds what may hold secrets: payload, env and values of the release
// and of the previous one. It may be called again after a crash.
func (t *Task) ShredSecrets() error {
	return t.withRoot(func(root *os.Root) error {
		var errs []error
		for _, name := range secrets {
			errs = append(errs, shred.Tree(root, name))
		}
		return errors.Join(errs...)
	})
}

// Complete hands a task with an outcome, whose secrets are shredded, to the
// notifier.
func (t *Task) Complete() error { return t.dir.move(t, Done) }

// Remove shreds the task's secrets, moves it to the trash and shreds the rest.
// After a crash in between, whoever opens the directory as its notifier finishes
// that; since nobody may do so for days, secrets never get as far as the trash.
func (t *Task) Remove() error {
	if t.State != Trash {
		if err := t.ShredSecrets(); err != nil {
			return err
		}
		if err := t.dir.move(t, Trash); err != nil {
			return err
		}
	}
	trash, err := t.dir.root(Trash)
	if err != nil {
		return err
	}
	if err := shred.Tree(trash, t.Name); err != nil {
		return fmt.Errorf("shred %s: %w", t.Name, err)
	}
	return nil
}

// maxQuarantine is how many directories the quarantine keeps: enough for a
// person to see what goes wrong, too few to fill a disk when it goes on.
const maxQuarantine = 20

// Quarantine sets a task aside whose manifest or outcome cannot be trusted, without
// its secrets, for a person to look at. While the secrets cannot be shredded the
// task stays where it is: what lies in quarantine is not looked through again. Of
// the others there, the oldest go.
func (t *Task) Quarantine(reason string) error {
	if err := t.ShredSecrets(); err != nil {
		return err
	}
	err := t.withRoot(func(root *os.Root) error {
		return durable.WriteFile(root, ReasonFile, []byte(reason+"\n"), 0o600)
	})
	if moveErr := t.dir.move(t, Quarantine); moveErr != nil {
		return errors.Join(err, moveErr)
	}
	return errors.Join(err, t.trimQuarantine())
}

// trimQuarantine shreds the oldest in quarantine beyond maxQuarantine, but never t
// itself.
func (t *Task) trimQuarantine() error {
	all, err := t.dir.List(Quarantine)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(other *Task) bool { return other.Name == t.Name })
	root, err := t.dir.root(Quarantine)
	if err != nil {
		return err
	}
	var errs []error
	for _, old := range all[:max(0, len(all)-(maxQuarantine-1))] {
		errs = append(errs, shred.Tree(root, old.Name))
	}
	return errors.Join(errs...)
}
