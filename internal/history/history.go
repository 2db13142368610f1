// Package history keeps what people may ask about runs that are over: outcome, timeline
// and masked log, each run in a directory of its own, apart from staging. There is no payload and no secret among it. It is bounded by the number of
// runs, their age and their size together; the oldest go first.
//
// One process, the notifier, writes; any number may read meanwhile, for a run appears and
// goes in one step.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Use is what marks the directory.
var Use = agentdir.Use{Name: "history", Setting: "history.dir"}

// Limits bound what is kept.
type Limits struct {
	Runs  int           // 0 keeps nothing
	Age   time.Duration // since a run's end
	Bytes int64         // of all runs together
}

// unfinished begins the name of a run that is being written.
const unfinished = ".new-"

// Store is where the notifier keeps runs.
type Store struct {
	path   string
	limits Limits
}

// New returns a store in the directory at path, which Open or the first Keep creates.
func New(path string, limits Limits) *Store {
	return &Store{path: path, limits: limits}
}

// files are what is kept of a task's directory; none may hold secrets.
var files = []string{staging.OutcomeFile, staging.EventsFile, staging.LogFile}

// Keep copies what is to be kept of a task that has an outcome, and removes what is beyond
// the limits. It may be called again after a crash.
func (s *Store) Keep(t *staging.Task) error {
	if err := s.keep(t); err != nil {
		return fmt.Errorf("keep the history of %s: %w", t.Name, err)
	}
	return nil
}

// Open makes the directory, unless nothing is to be kept, and removes what is beyond the
// limits. The error of a directory that somebody else uses is one sentence.
func (s *Store) Open() error { return s.keep(nil) }

// keep does both; without a task it copies nothing.
func (s *Store) keep(t *staging.Task) error {
	if s.limits.Runs <= 0 {
		if _, err := os.Stat(s.path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	root, err := Use.Open(s.path)
	if err != nil {
		return err
	}
	defer root.Close()
	if s.limits.Runs > 0 && t != nil {
		if err := s.copy(root, t); err != nil {
			return err
		}
	}
	return s.prune(root)
}

func (s *Store) copy(root *os.Root, t *staging.Task) error {
	from, err := t.Root()
	if err != nil {
		return err
	}
	defer from.Close()
	name := unfinished + t.Name
	if err := root.RemoveAll(name); err != nil { // left by a crash
		return err
	}
	if err := root.Mkdir(name, 0o700); err != nil {
		return err
	}
	for _, file := range files {
		if err := copyFile(root, filepath.Join(name, file), from, file); err != nil {
			return errors.Join(err, root.RemoveAll(name))
		}
	}
	err = root.Rename(name, t.Name)
	if errors.Is(err, fs.ErrExist) { // kept before a crash
		return root.RemoveAll(name)
	}
	return err
}

// copyFile copies a regular file; one that is not there is passed over.
func copyFile(to *os.Root, target string, from *os.Root, name string) error {
	info, err := from.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := to.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// prune removes what is beyond the limits, and what a crash left half-written.
func (s *Store) prune(root *os.Root) error {
	names, left, err := list(root)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range left {
		errs = append(errs, root.RemoveAll(name))
	}
	var bytes int64
	for i, name := range names {
		size, ended := measure(root, name)
		bytes += size
		if i >= s.limits.Runs || time.Since(ended) > s.limits.Age || bytes > s.limits.Bytes && i > 0 {
			errs = append(errs, root.RemoveAll(name))
		}
	}
	return errors.Join(errs...)
}

// measure returns the size of a run and when it ended: when its directory was written.
func measure(root *os.Root, name string) (size int64, ended time.Time) {
	if info, err := root.Stat(name); err == nil {
		ended = info.ModTime()
	}
	_ = fs.WalkDir(root.FS(), name, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // what can be read counts
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
		return nil
	})
	return size, ended
}

// list returns the names of the runs, newest first, and of those that are not finished.
func list(root *os.Root) (runs, left []string, err error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), unfinished):
			left = append(left, e.Name())
		case e.IsDir() && !strings.HasPrefix(e.Name(), "."):
			runs = append(runs, e.Name())
		}
	}
	slices.Sort(runs) // their names begin with the time
	slices.Reverse(runs)
	return slices.DeleteFunc(runs, func(name string) bool { return name == "lost+found" }), left, nil
}

// Run is a run that is over. Its files are read when they are asked for.
type Run struct {
	Name    string // of its directory, as it was in staging
	Path    string
	Outcome task.Outcome
}

// List returns the runs that the directory at path keeps, newest first. One whose outcome
// cannot be read is left out. No directory is no runs.
func List(path string) ([]Run, error) {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	defer root.Close()
	names, _, err := list(root)
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	var runs []Run
	for _, name := range names {
		r := Run{Name: name, Path: filepath.Join(path, name)}
		data, err := root.ReadFile(filepath.Join(name, staging.OutcomeFile))
		if err == nil && json.Unmarshal(data, &r.Outcome) == nil && r.Outcome.TaskID != "" {
			runs = append(runs, r)
		}
	}
	return runs, nil
}

// Events returns the run's timeline, oldest first.
func (r Run) Events() ([]task.Event, error) {
	f, err := r.open(staging.EventsFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	events := []task.Event{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e task.Event
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			events = append(events, e)
		}
	}
	return events, lines.Err()
}

// Log opens what was said about the run; fs.ErrNotExist when nothing was. The caller
// closes it.
func (r Run) Log() (io.ReadCloser, error) { return r.open(staging.LogFile) }

func (r Run) open(name string) (*os.File, error) {
	root, err := os.OpenRoot(r.Path)
	if err != nil {
		return nil, fmt.Errorf("read the history of %s: %w", r.Name, err)
	}
	defer root.Close()
	return root.Open(name)
}
