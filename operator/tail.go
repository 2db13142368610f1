package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Tail copies a task's deploy.log while it is written. It holds the directory
// open, so that it goes with it from state to state.
type Tail struct {
	dir    *staging.Dir
	task   *staging.Task
	root   *os.Root
	out    io.Writer
	offset int64
	buf    []byte
}

// NewTail returns one that copies the log of t, which lies in dir, to out. Both
// stay the caller's. The caller closes the Tail.
func NewTail(dir *staging.Dir, t *staging.Task, out io.Writer) (*Tail, error) {
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	return &Tail{dir: dir, task: t, root: root, out: out, buf: make([]byte, 32<<10)}, nil
}

// Close lets go of the directory.
func (l *Tail) Close() { _ = l.root.Close() }

// Empty reports whether nothing was copied yet.
func (l *Tail) Empty() bool { return l.offset == 0 }

// ErrShredded means that a task's directory was or is being shredded.
var ErrShredded = errors.New("the task's directory was shredded")

// locate finds out where the task lies now.
func (l *Tail) locate() error {
	state, err := l.dir.Where(l.task.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && state == staging.Trash:
		return ErrShredded
	case err != nil:
		return err
	}
	l.task.State = state
	return nil
}

// Copy copies what the log has got since the last call.
func (l *Tail) Copy() error {
	f, err := l.root.Open(staging.LogFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", l.task.Name, err)
	}
	defer f.Close()
	for {
		n, err := f.ReadAt(l.buf, l.offset)
		if n > 0 {
			// What is read from a directory on its way out may be what it was
			// overwritten with.
			if err := l.locate(); err != nil {
				return err
			}
			if _, err := l.out.Write(l.buf[:n]); err != nil {
				return err
			}
			l.offset += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the log of %s: %w", l.task.Name, err)
		}
	}
}

// Follow copies the log until the task has an outcome, and returns that. It
// returns ErrShredded when the directory went away before.
func (l *Tail) Follow(ctx context.Context) (task.Outcome, error) {
	var events chan fsnotify.Event
	if w, err := fsnotify.NewWatcher(); err == nil { // without one, the timer alone
		defer w.Close()
		if w.Add(l.task.Path()) == nil {
			events = w.Events
		}
	}
	tick := time.NewTicker(stagingPoll)
	defer tick.Stop()
	for {
		if err := l.locate(); err != nil {
			return task.Outcome{}, err
		}
		// The log is complete when the outcome is there: look for that first.
		o, outcomeErr := outcomeOf(l.task)
		if err := l.Copy(); err != nil {
			return o, err
		}
		if outcomeErr == nil || l.task.State == staging.Quarantine {
			return o, outcomeErr
		}
		select {
		case <-ctx.Done():
			return o, ctx.Err()
		case <-tick.C:
		case <-events:
		}
	}
}
