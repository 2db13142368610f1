package main

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
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// inspection is what `inspect --output json` prints.
type inspection struct {
	Dir        string        `json:"dir"`
	Components []holder      `json:"components"`
	States     []stateReport `json:"states"`
}

// holder tells whether a component runs on the staging directory.
type holder struct {
	Name    staging.Role  `json:"name"`
	State   staging.State `json:"holds"`
	Running bool          `json:"running"`
}

// stateReport is one of the directories.
type stateReport struct {
	State   staging.State `json:"state"`
	Meaning string        `json:"meaning"`
	Tasks   []taskReport  `json:"tasks"`
}

// taskReport is a task's directory. What could not be read is missing, and
// Problems says why.
type taskReport struct {
	Name     string           `json:"name"`
	Path     string           `json:"path"`
	State    staging.State    `json:"state"`
	Manifest *manifestReport  `json:"manifest,omitempty"`
	Touched  time.Time        `json:"touched_at"` // when something last changed in it
	Files    int              `json:"files"`
	Bytes    int64            `json:"bytes"`
	Secrets  []string         `json:"secrets,omitempty"` // what of it is there and may hold some
	Attempts int              `json:"attempts"`
	Cancel   *string          `json:"cancel,omitempty"` // an operator's wish, with its reason
	Events   []task.Event     `json:"events"`
	Outcome  *task.Outcome    `json:"outcome,omitempty"`
	Mail     *notifier.Ledger `json:"mail,omitempty"`
	Reason   string           `json:"reason,omitempty"` // in quarantine
	Problems []string         `json:"problems,omitempty"`
	Next     string           `json:"next"` // who does what with it, and when
}

// manifestReport is the manifest without its list of files.
type manifestReport struct {
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

// holders lists the components and what each of them locks.
var holders = []holder{
	{Name: staging.Fetcher, State: staging.Tmp}, {Name: staging.Runner, State: staging.Running}, {Name: staging.Notifier, State: staging.Trash},
}

// runInspect is `wrktalk-agent inspect`.
func runInspect(a *app, args []string) error {
	fset := a.flags()
	a.outputFlag(fset)
	rest, err := a.parse(fset, args, 0, 1)
	if err != nil {
		return err
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	dir, err := openStaging(cfg.Staging.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	i := inspector{dir: dir, attempts: cfg.Agent.MaxAttempts, keep: cfg.Staging.Keep, now: time.Now()}
	if len(rest) > 0 {
		t, err := findLocal(dir, rest[0])
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: what the database knows of it shows wrktalk-agent logs", err)
		}
		if err != nil {
			return err
		}
		i.only = t.Name
	}
	report, err := i.inspect()
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(report)
	}
	return report.print(a.stdout, i.only != "", i.now)
}

// inspector looks at a staging directory. It changes nothing.
type inspector struct {
	dir            *staging.Dir
	attempts, keep int    // agent.max_attempts, staging.keep
	only           string // the one directory to look at; "" is all
	running        map[staging.Role]bool
	now            time.Time
}

func (i *inspector) inspect() (*inspection, error) {
	r := &inspection{Dir: i.dir.Path(), Components: slices.Clone(holders)}
	i.running = map[staging.Role]bool{}
	for n := range r.Components {
		c := &r.Components[n]
		held, err := i.dir.Held(c.Name)
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
		state := stateReport{State: s, Meaning: meanings[s], Tasks: []taskReport{}}
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
func (i *inspector) task(t *staging.Task) (taskReport, bool) {
	r := taskReport{Name: t.Name, Path: t.Path(), State: t.State, Events: []task.Event{}}
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
	if t.State != staging.Trash { // there, anything may be half overwritten
		m, err := t.Manifest()
		if err == nil {
			r.Manifest = &manifestReport{Manifest: *m, Count: len(m.Files)}
		} else if t.State != staging.Tmp || !errors.Is(err, fs.ErrNotExist) {
			r.Problems = append(r.Problems, err.Error())
		}
		run, err := t.Run()
		problem(err)
		r.Attempts = run.Attempts
		if reason, ok, err := staging.CancelRequested(root); ok {
			r.Cancel = &reason
			problem(err)
		}
		events, err := t.Events()
		problem(err)
		r.Events = append(r.Events, events...)
		if o, err := t.Outcome(); err == nil {
			r.Outcome = &o
		} else {
			problem(err)
		}
		if l, err := notifier.ReadLedger(t); err == nil {
			r.Mail = l
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
func (r *taskReport) measure(root *os.Root, problem func(error)) {
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
