package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// inFlight are the states of a task that has no outcome yet, the one that is
// furthest on its way first.
var inFlight = []staging.State{staging.Running, staging.Ready, staging.Tmp}

// openStaging opens the staging directory to look at it. The caller closes it.
func openStaging(path string) (*staging.Dir, error) {
	dir, err := staging.Open(path, staging.Reader)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no staging directory %s: no agent has run on this host with this configuration (staging.dir) yet: %w", path, fs.ErrNotExist)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: run this as the agent's user or as root", err)
	}
	return dir, err
}

// findLocal returns the task in dir that a person named: by its id or the
// beginning of it, or by its directory's name. No name is the task in flight,
// else the newest of those that ended or were set aside. An error that is
// fs.ErrNotExist means that none lies there.
func findLocal(dir *staging.Dir, name string) (*staging.Task, error) {
	states := slices.Concat(inFlight, []staging.State{staging.Done, staging.Quarantine})
	if name != "" {
		if err := checkName(name); err != nil {
			return nil, err
		}
		states = append(states, staging.Trash)
	}
	var matches []*staging.Task
	for _, s := range states {
		tasks, err := dir.List(s)
		if err != nil {
			return nil, err
		}
		if name == "" && len(tasks) > 0 {
			return tasks[len(tasks)-1], nil
		}
		for _, t := range tasks {
			if t.Name == name {
				return t, nil
			}
			m, err := t.Manifest()
			if err == nil && strings.HasPrefix(string(m.TaskID), strings.ToLower(name)) {
				matches = append(matches, t)
			}
		}
	}
	switch {
	case name == "":
		return nil, fmt.Errorf("no task lies in staging directory %s: name one, see wrktalk-agent status: %w", dir.Path(), fs.ErrNotExist)
	case len(matches) == 0:
		return nil, fmt.Errorf("find task %q in staging directory %s: %w", name, dir.Path(), fs.ErrNotExist)
	}
	// One task may have several directories: an attempt that was set aside, and
	// the next. The first is the one that is under way.
	first, _ := matches[0].Manifest()
	for _, t := range matches[1:] {
		if m, err := t.Manifest(); err == nil && first != nil && m.TaskID != first.TaskID {
			return nil, usagef("%q is the beginning of more than one task's id: give more of it", name)
		}
	}
	return matches[0], nil
}

// checkName refuses what could mean any task.
func checkName(name string) error {
	if len(name) < 4 {
		return usagef("%q is too short for a task: give at least four characters of its id, or its directory's name", name)
	}
	return nil
}

// findRow returns the row of the task that a person named, by the same names
// as findLocal.
func findRow(ctx context.Context, db *taskdb.DB, name string) (taskdb.TaskRow, error) {
	if err := checkName(name); err != nil {
		return taskdb.TaskRow{}, err
	}
	row, err := db.Task(ctx, task.ID(name))
	if !errors.Is(err, taskdb.ErrNotFound) {
		return row, err
	}
	prefix := strings.ToLower(name)
	if i := strings.LastIndexByte(name, '-'); strings.Contains(name, "Z-") && i > 0 {
		prefix, _, _ = strings.Cut(name[i+1:], ".") // of a directory that is gone
	}
	rows, listErr := db.Tasks(ctx, taskdb.TaskFilter{IDPrefix: prefix, Limit: 2})
	switch {
	case listErr != nil:
		return row, listErr
	case len(rows) == 0:
		return row, fmt.Errorf("there is no task %q: see wrktalk-agent status: %w", name, taskdb.ErrNotFound)
	case len(rows) > 1:
		return row, usagef("%q is the beginning of more than one task's id: give more of it", name)
	}
	return rows[0], nil
}
