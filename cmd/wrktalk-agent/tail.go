package main

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

// tail prints a task's deploy.log while it is written. It holds the directory
// open, so that it goes with it from state to state.
type tail struct {
	dir    *staging.Dir
	task   *staging.Task
	root   *os.Root
	out    io.Writer
	offset int64
	buf    []byte
}

func newTail(dir *staging.Dir, t *staging.Task, out io.Writer) (*tail, error) {
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	return &tail{dir: dir, task: t, root: root, out: out, buf: make([]byte, 32<<10)}, nil
}

func (l *tail) close() { _ = l.root.Close() }

// errShredded means that a task's directory was or is being shredded.
var errShredded = errors.New("the task's directory was shredded")

// locate finds out where the task lies now.
func (l *tail) locate() error {
	state, err := l.dir.Where(l.task.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && state == staging.Trash:
		return errShredded
	case err != nil:
		return err
	}
	l.task.State = state
	return nil
}

// copy prints what the log has got since the last call.
func (l *tail) copy() error {
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

// follow prints the log until the task has an outcome, and returns that. It
// returns errShredded when the directory went away before.
func (l *tail) follow(ctx context.Context) (task.Outcome, error) {
	var events chan fsnotify.Event
	if w, err := fsnotify.NewWatcher(); err == nil { // without one, the timer alone
		defer w.Close()
		if w.Add(l.task.Path()) == nil {
			events = w.Events
		}
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		if err := l.locate(); err != nil {
			return task.Outcome{}, err
		}
		// The log is complete when the outcome is there: look for that first.
		o, outcomeErr := l.task.Outcome()
		if err := l.copy(); err != nil {
			return o, err
		}
		if outcomeErr == nil {
			return o, nil
		}
		if l.task.State == staging.Quarantine {
			return o, fmt.Errorf("task directory %s was set aside: see wrktalk-agent inspect %s", l.task.Path(), l.task.Name)
		}
		select {
		case <-ctx.Done():
			return o, ctx.Err()
		case <-tick.C:
		case <-events:
		}
	}
}
