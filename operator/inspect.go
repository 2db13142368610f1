package operator

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Inspection is what lies in a staging directory, and who acts on it next.
type Inspection struct {
	Dir        string          `json:"dir"`
	Components []ComponentLock `json:"components"`
	States     []StateReport   `json:"states"`
}

// ComponentLock tells whether a component runs on the staging directory.
type ComponentLock struct {
	Name    staging.Role  `json:"name"`
	State   staging.State `json:"holds"`
	Running bool          `json:"running"`
}

// StateReport is one of the directories.
type StateReport struct {
	State   staging.State `json:"state"`
	Meaning string        `json:"meaning"`
	Tasks   []TaskReport  `json:"tasks"`
}

// TaskReport is a task's directory. What could not be read is missing, and
// Problems says why.
type TaskReport struct {
	Name     string          `json:"name"`
	Path     string          `json:"path"`
	State    staging.State   `json:"state"`
	Manifest *ManifestReport `json:"manifest,omitempty"`
	Touched  time.Time       `json:"touched_at"` // when something last changed in it
	Files    int             `json:"files"`
	Bytes    int64           `json:"bytes"`
	Secrets  []string        `json:"secrets,omitempty"` // names of files that may hold secrets
	Attempts int             `json:"attempts"`
	Cancel   *string         `json:"cancel,omitempty"` // the reason of an operator's request
	// Refused is why the database does not take the outcome.
	Refused  *staging.Refusal `json:"refused,omitempty"`
	Events   []task.Event     `json:"events"`
	Outcome  *task.Outcome    `json:"outcome,omitempty"`
	Mail     any              `json:"mail,omitempty"`   // as the notifier keeps it
	Reason   string           `json:"reason,omitempty"` // in quarantine
	Problems []string         `json:"problems,omitempty"`
	Messages *Mail            `json:"-"`    // what Mail holds
	Next     string           `json:"next"` // who does what with it, and when
}

// ManifestReport is the manifest without its list of files.
type ManifestReport struct {
	staging.Manifest
	Files []staging.File `json:"files,omitempty"` // always nil: hides the manifest's
	Count int            `json:"file_count"`
}

// meanings explains the states to a person.
var meanings = map[staging.State]string{
	staging.Tmp:        "being staged: the fetcher writes, verifies and extracts here",
	staging.Ready:      "complete and verified, waiting for the runner",
	staging.Running:    "taken by the runner: being deployed or recorded",
	staging.Done:       "has an outcome that the database knows; secrets are gone; the notifier sends mail",
	staging.Trash:      "dealt with; the notifier or the runner is shredding it",
	staging.Quarantine: "set aside for a person; nothing happens to it by itself",
}

// componentLocks lists the components and what each of them locks.
var componentLocks = []ComponentLock{
	{Name: staging.Fetcher, State: staging.Tmp}, {Name: staging.Runner, State: staging.Running}, {Name: staging.Notifier, State: staging.Trash},
}

// Inspect looks at the staging directory, or at the one task in it that a person
// named; see FindLocal. It changes nothing.
func (c *Client) Inspect(name string) (*Inspection, error) {
	dir, err := OpenStaging(c.StagingDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	i := inspector{Client: c, dir: dir, now: time.Now(), running: map[staging.Role]bool{}}
	if name != "" {
		t, err := FindLocal(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			past, pastErr := c.inspectPast(name)
			if !errors.Is(pastErr, fs.ErrNotExist) {
				return past, pastErr
			}
			return nil, fmt.Errorf("%w: what the database knows of it shows wrktalk-agent logs", err)
		}
		if err != nil {
			return nil, err
		}
		i.only = t.Name
	}
	return i.inspect()
}

// inspector looks at a staging directory.
type inspector struct {
	*Client
	dir     *staging.Dir
	only    string // the one directory to look at; "" is all
	running map[staging.Role]bool
	now     time.Time
}

func (i *inspector) inspect() (*Inspection, error) {
	r := &Inspection{Dir: i.dir.Path(), Components: slices.Clone(componentLocks)}
	for n := range r.Components {
		c := &r.Components[n]
		held, err := i.dir.Locked(c.Name)
		if err != nil {
			return nil, fmt.Errorf("find out whether the %s is running: %w", c.Name, err)
		}
		c.Running, i.running[c.Name] = held, held
	}
	for _, s := range staging.States {
		tasks, err := i.dir.List(s)
		if err != nil {
			return nil, err
		}
		state := StateReport{State: s, Meaning: meanings[s], Tasks: []TaskReport{}}
		for _, t := range tasks {
			if i.only != "" && t.Name != i.only {
				continue
			}
			if report, ok := i.task(t); ok {
				state.Tasks = append(state.Tasks, report)
			}
		}
		if i.only == "" || len(state.Tasks) > 0 {
			r.States = append(r.States, state)
		}
	}
	return r, nil
}

// task looks at one directory; false means that it moved on meanwhile.
func (i *inspector) task(t *staging.Task) (TaskReport, bool) {
	r := TaskReport{Name: t.Name, Path: t.Path(), State: t.State, Events: []task.Event{}}
	root, err := t.Root()
	if err != nil {
		return r, !errors.Is(err, fs.ErrNotExist)
	}
	defer root.Close()
	problem := func(err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.Problems = append(r.Problems, err.Error())
		}
	}
	r.measure(root, problem)
	if t.State != staging.Trash { // where anything may be half overwritten
		m, err := t.Manifest()
		if err == nil {
			r.Manifest = &ManifestReport{Manifest: *m, Count: len(m.Files)}
		} else if t.State != staging.Tmp || !errors.Is(err, fs.ErrNotExist) {
			r.Problems = append(r.Problems, err.Error())
		}
		run, err := t.Attempts()
		problem(err)
		r.Attempts = run.Count
		if reason, ok, err := staging.CancelRequested(root); ok {
			r.Cancel = &reason
			problem(err)
		}
		r.Refused = t.Refusal()
		events, err := t.Events()
		problem(err)
		r.Events = append(r.Events, events...)
		if o, err := t.Outcome(); err == nil {
			r.Outcome = &o
		} else {
			problem(err)
		}
		if m, err := i.ReadMail(t); err == nil {
			r.Mail, r.Messages = m.Record, m
		} else {
			problem(err)
		}
		r.Reason = reasonOf(root, problem)
	}
	if state, err := i.dir.Where(t.Name); err != nil || state != t.State {
		return r, false
	}
	r.Next = i.next(&r)
	return r, true
}

// measure counts what lies in the directory.
func (r *TaskReport) measure(root *os.Root, problem func(error)) {
	err := fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if top := !strings.Contains(name, "/"); top && name != "." && staging.Secret(name) {
			r.Secrets = append(r.Secrets, name)
		}
		if info.ModTime().After(r.Touched) {
			r.Touched = info.ModTime().UTC()
		}
		if info.Mode().IsRegular() {
			r.Files++
			r.Bytes += info.Size()
		}
		return nil
	})
	problem(err)
}

// reasonOf returns why a directory was set aside.
func reasonOf(root *os.Root, problem func(error)) string {
	f, err := root.Open(staging.ReasonFile)
	if err != nil {
		problem(err)
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, task.MaxMessage))
	problem(err)
	return strings.TrimSpace(task.SafeText(string(data), task.MaxMessage))
}
