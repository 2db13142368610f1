package operator

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/history"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Past is the state, in an Inspection, of a run that the history keeps.
const Past staging.State = "history"

// History returns the runs that are kept on this host, newest first.
func (c *Client) History() ([]history.Run, error) {
	runs, err := history.List(c.HistoryDir)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: run this as the agent's user or as root", err)
	}
	return runs, err
}

// FindPast returns the newest run of the task that a person named, by the same names as
// FindLocal, but no name is none. An error that is fs.ErrNotExist means that none is kept;
// a *NameError, that the name will not do.
func (c *Client) FindPast(name string) (history.Run, error) {
	runs, err := c.History()
	if err != nil {
		return history.Run{}, err
	}
	var matches []history.Run
	for _, r := range runs {
		switch id := string(r.Outcome.TaskID); {
		case name == "":
		case r.Name == name, id == name:
			return r, nil
		case len(name) >= shortestName && strings.HasPrefix(id, strings.ToLower(name)):
			matches = append(matches, r)
		}
	}
	if len(matches) == 0 {
		return history.Run{}, absentf(fs.ErrNotExist, "there is no task %q in %s", name, c.HistoryDir)
	}
	for _, r := range matches[1:] {
		if r.Outcome.TaskID != matches[0].Outcome.TaskID {
			return history.Run{}, nameErrorf("%q is the beginning of more than one task's id: give more of it", name)
		}
	}
	return matches[0], nil
}

// PastTaskLog returns what is kept of a run, its log included.
func PastTaskLog(r history.Run) (TaskLog, error) {
	l := TaskLog{ID: r.Outcome.TaskID, State: Past, Events: []task.Event{}, Outcome: &r.Outcome}
	events, err := r.Events()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return l, err
	}
	l.Events = append(l.Events, events...)
	log, err := r.Log()
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	defer log.Close()
	text, err := io.ReadAll(log)
	l.Log = string(text)
	return l, err
}

// inspectPast is Inspect of a run that is over.
func (c *Client) inspectPast(name string) (*Inspection, error) {
	r, err := c.FindPast(name)
	if err != nil {
		return nil, err
	}
	l, err := PastTaskLog(r)
	if err != nil {
		return nil, err
	}
	report := TaskReport{
		Name: r.Name, Path: r.Path, State: Past, Events: l.Events, Outcome: l.Outcome,
		Touched: r.Outcome.FinishedAt, Bytes: int64(len(l.Log)), Next: "nothing: the run is over",
	}
	return &Inspection{Dir: c.HistoryDir, States: []StateReport{{State: Past, Meaning: "runs that are over", Tasks: []TaskReport{report}}}}, nil
}
