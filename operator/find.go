package operator

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

// OpenStaging opens the staging directory to look at it. The caller closes it.
func OpenStaging(path string) (*staging.Dir, error) {
	dir, err := staging.Open(path, staging.Reader)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, absentf(fs.ErrNotExist, "there is no staging directory %s: no agent has run on this host with this configuration (staging.dir) yet", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: run this as the agent's user or as root", err)
	}
	return dir, err
}

// FindLocal returns the task in dir that a person named: by its id or the
// beginning of it, or by its directory's name. No name is the task in flight,
// else the newest of those that ended or were set aside. An error that is
// fs.ErrNotExist means that none lies there; a *NameError, that the name will not
// do.
func FindLocal(dir *staging.Dir, name string) (*staging.Task, error) {
	states := slices.Concat(inFlight, []staging.State{staging.Done, staging.Quarantine})
	if name != "" {
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
			m, err := t.Manifest()
			switch {
			case t.Name == name, err == nil && string(m.TaskID) == name:
				return t, nil
			case err == nil && len(name) >= shortestName && strings.HasPrefix(string(m.TaskID), strings.ToLower(name)):
				matches = append(matches, t)
			}
		}
	}
	switch {
	case name == "":
		return nil, absentf(fs.ErrNotExist, "no task lies in staging directory %s: name one, see wrktalk-agent status", dir.Path())
	case len(matches) == 0 && len(name) < shortestName: // it may be one of the database
		return nil, absentf(fs.ErrNotExist, "%w", errTooShort(name))
	case len(matches) == 0:
		return nil, absentf(fs.ErrNotExist, "there is no task %q in staging directory %s", name, dir.Path())
	}
	// One task may have several directories: an attempt that was set aside, and
	// the next. The first is the one that is under way.
	first, _ := matches[0].Manifest()
	for _, t := range matches[1:] {
		if m, err := t.Manifest(); err == nil && first != nil && m.TaskID != first.TaskID {
			return nil, nameErrorf("%q is the beginning of more than one task's id: give more of it", name)
		}
	}
	return matches[0], nil
}

// shortestName is how many characters of an id mean its task. A whole id may have
// fewer, where a backend counts its tasks.
const shortestName = 4

func errTooShort(name string) error {
	return fmt.Errorf("%q is no task's id, and too short for the beginning of one: give at least %d characters, or the name of its directory", name, shortestName)
}

// FindTask returns the row of the task that a person named, by the same names
// as FindLocal.
func (c *Client) FindTask(ctx context.Context, name string) (taskdb.TaskRow, error) {
	row, err := c.DB.Task(ctx, task.ID(name))
	if !errors.Is(err, taskdb.ErrNotFound) {
		return row, err
	}
	if len(name) < shortestName {
		return row, &NameError{errTooShort(name).Error()}
	}
	prefix := strings.ToLower(name)
	if i := strings.LastIndexByte(name, '-'); strings.Contains(name, "Z-") && i > 0 {
		prefix, _, _ = strings.Cut(name[i+1:], ".") // of a directory that is gone
	}
	rows, listErr := c.DB.Tasks(ctx, taskdb.TaskFilter{IDPrefix: prefix, Limit: 2})
	switch {
	case listErr != nil:
		return row, listErr
	case len(rows) == 0:
		return row, absentf(taskdb.ErrNotFound, "there is no task %q: wrktalk-agent status shows the last ones", name)
	case len(rows) > 1:
		return row, nameErrorf("%q is the beginning of more than one task's id: give more of it", name)
	}
	return rows[0], nil
}
