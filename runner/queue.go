package runner

import (
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

// next returns the task to go on with, nil for none. What lies in running was
// left there by a predecessor, or gave way to a task that was asked for offline.
// What an attempt was interrupted in comes first: the database that the others
// wait for may be part of it. Outcomes are recorded in the order in which they
// came about, before anything else begins.
func (r *Runner) next() (*staging.Task, error) {
	if t, err := r.offline(); t != nil || err != nil {
		return t, err
	}
	tasks, err := r.interrupted()
	if err != nil {
		return nil, err
	}
	if len(tasks) > 0 {
		return tasks[0], nil
	}
	if t, err := r.unrecorded(); t != nil || err != nil {
		return t, err
	}
	for _, s := range []staging.State{staging.Running, staging.Ready} {
		tasks, err := r.dir.List(s)
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			if f := t.Refusal(); f == nil || !f.LetsPass || !time.Now().Before(f.Next) || t.ForgetRequested() {
				return t, nil
			}
		}
	}
	return nil, nil
}

// interrupted returns the tasks in running that an attempt left without an
// outcome, oldest first.
func (r *Runner) interrupted() ([]*staging.Task, error) {
	tasks, err := r.dir.List(staging.Running)
	return slices.DeleteFunc(tasks, func(t *staging.Task) bool {
		attempts, err := t.Attempts()
		if err != nil || attempts.Count == 0 {
			return true
		}
		_, err = t.Outcome()
		return !errors.Is(err, fs.ErrNotExist)
	}), err
}

// unrecorded returns the task in running whose outcome is the oldest, nil for
// none. Those that the database refuses, and that later ones may pass, are left out.
func (r *Runner) unrecorded() (first *staging.Task, err error) {
	tasks, err := r.dir.List(staging.Running)
	if err != nil {
		return nil, err
	}
	var earliest time.Time
	for _, t := range tasks {
		o, err := t.Outcome()
		if f := t.Refusal(); f != nil && f.LetsPass {
			continue
		}
		if err == nil && (first == nil || o.FinishedAt.Before(earliest)) {
			first, earliest = t, o.FinishedAt
		}
	}
	return first, nil
}

// offline returns the oldest ready task that an operator asked for on this host,
// nil for none.
func (r *Runner) offline() (*staging.Task, error) {
	tasks, err := r.dir.List(staging.Ready)
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		if m, err := t.Manifest(); err == nil && m.Offline {
			return t, nil
		}
	}
	return nil, nil
}
