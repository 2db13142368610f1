package operator

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Unrecorded is an ended task whose outcome the database refuses.
type Unrecorded struct {
	TaskID  task.ID   `json:"task_id"`
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
	NextTry time.Time `json:"next_try"`
	// Blocks tells that no other task is carried out before it is recorded: what
	// serves now is known to this host alone.
	Blocks bool `json:"blocks"`
}

// unrecordedOf returns the tasks in running whose outcomes the database refuses.
func unrecordedOf(running []*staging.Task) (list []Unrecorded) {
	for _, t := range running {
		f := t.Refusal()
		m, err := t.Manifest()
		if f == nil || err != nil {
			continue
		}
		list = append(list, Unrecorded{TaskID: m.TaskID, Reason: f.Reason, Since: f.Since, NextTry: f.Next, Blocks: !f.LetsPass})
	}
	return list
}

// Forget has the runner of this host give up recording the outcome of a task that
// the database refuses, and returns the task's id. The mails about it are sent. A
// row that is in progress stays so until somebody ends it.
func (c *Client) Forget(name string) (task.ID, error) {
	dir, err := OpenStaging(c.StagingDir)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	t, err := FindLocal(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: run this on the host of the agent that carried the task out", err)
	}
	if err != nil {
		return "", err
	}
	m, err := t.Manifest()
	if err != nil {
		return "", err
	}
	if t.State != staging.Running || t.Refusal() == nil {
		return "", fmt.Errorf("task %s has no outcome that the database refuses: see wrktalk-agent inspect %[1]s, and cancel for a task that is to be stopped", m.TaskID)
	}
	return m.TaskID, t.RequestForget()
}
