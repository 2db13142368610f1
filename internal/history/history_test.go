package history

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

var generous = Limits{Runs: 100, Age: time.Hour, Bytes: 1 << 20}

// done returns the directory of the n-th task, with an outcome, a timeline, a log of the
// given size and an env that must not be kept.
func done(t *testing.T, n, log int) *staging.Task {
	t.Helper()
	d, err := staging.Open(filepath.Join(t.TempDir(), "staging"), staging.Fetcher)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	id := task.ID(fmt.Sprintf("task-%d", n))
	draft, err := d.Create(staging.Name(time.Unix(int64(n), 0), task.KindDeploy, "1.0.0", id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { draft.Root().Close() })
	for name, text := range map[string]string{staging.EnvFile: "SECRET=canary", staging.LogFile: strings.Repeat("x", log), "extra.json": "{}"} {
		if err := draft.Root().WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tasks, err := d.List(staging.Tmp)
	if err != nil || len(tasks) != 1 {
		t.Fatal(tasks, err)
	}
	err = errors.Join(tasks[0].SaveOutcome(task.Outcome{Schema: task.OutcomeSchema, TaskID: id, Succeeded: true}),
		tasks[0].Append(task.Event{Time: time.Unix(int64(n), 0), Component: "runner", Phase: task.PhaseApplying, Text: "bringing up"}))
	if err != nil {
		t.Fatal(err)
	}
	return tasks[0]
}

// kept returns the ids of the runs, newest first.
func kept(t *testing.T, path string) string {
	t.Helper()
	runs, err := List(path)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, r := range runs {
		ids = append(ids, strings.TrimPrefix(string(r.Outcome.TaskID), "task-"))
	}
	return strings.Join(ids, " ")
}

func TestWhatIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	s := New(path, generous)
	st := done(t, 1, 5)
	for range 2 { // as after a crash
		if err := s.Keep(st); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := List(path)
	if err != nil || len(runs) != 1 || runs[0].Outcome.TaskID != "task-1" || runs[0].Name != st.Name {
		t.Fatalf("%+v, %v", runs, err)
	}
	events, err := runs[0].Events()
	if err != nil || len(events) != 1 || events[0].Text != "bringing up" {
		t.Errorf("%+v, %v", events, err)
	}
	log, err := runs[0].Log()
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if text, err := io.ReadAll(log); err != nil || string(text) != "xxxxx" {
		t.Errorf("%q, %v", text, err)
	}
	entries, err := os.ReadDir(runs[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if want := []string{staging.LogFile, staging.EventsFile, staging.OutcomeFile}; !slices.Equal(names, want) {
		t.Errorf("kept are %q, want %q", names, want)
	}
}

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		limits Limits
		after  time.Duration
		want   string
	}{
		"none":   {generous, 0, "4 3 2 1"},
		"runs":   {Limits{Runs: 2, Age: time.Hour, Bytes: 1 << 20}, 0, "4 3"},
		"off":    {Limits{Age: time.Hour, Bytes: 1 << 20}, 0, ""},
		"bytes":  {Limits{Runs: 100, Age: time.Hour, Bytes: 3500}, 0, "4 3"},
		"small":  {Limits{Runs: 100, Age: time.Hour, Bytes: 1}, 0, "4"},
		"age":    {generous, 2 * time.Hour, "5"},
		"future": {generous, -time.Hour, "5 4 3 2 1"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "history")
			for n := 1; n <= 4; n++ {
				if err := New(path, c.limits).Keep(done(t, n, 1000)); err != nil {
					t.Fatal(err)
				}
			}
			if c.after != 0 {
				runs, err := List(path)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range runs {
					ended := time.Now().Add(-c.after)
					if err := os.Chtimes(r.Path, ended, ended); err != nil {
						t.Fatal(err)
					}
				}
				if err := New(path, c.limits).Keep(done(t, 5, 1000)); err != nil {
					t.Fatal(err)
				}
			}
			if got := kept(t, path); got != c.want {
				t.Errorf("kept are %q, want %q", got, c.want)
			}
		})
	}
}

// What was kept before the history was switched off goes.
func TestSwitchedOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	if err := New(path, generous).Keep(done(t, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := New(path, Limits{}).Keep(done(t, 2, 1)); err != nil {
		t.Fatal(err)
	}
	if got := kept(t, path); got != "" {
		t.Errorf("kept are %q", got)
	}
}

// It is there, and what is too old is gone, before anything is kept.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	if err := New(path, generous).Keep(done(t, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := New(path, Limits{Runs: 1, Age: 1, Bytes: 1}).Open(); err != nil {
		t.Fatal(err)
	}
	if got := kept(t, path); got != "" {
		t.Errorf("kept are %q", got)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := errors.Join(New(other, Limits{}).Open(), New(path, generous).Open()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(other); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a history that is switched off has a directory: %v", err)
	}
}

// A directory of somebody else is left as it is.
func TestForeignDirectory(t *testing.T) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "theirs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := New(path, generous).Keep(done(t, 1, 1)); err == nil || !strings.Contains(err.Error(), "history.dir") {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(path); err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}

// What a crash left half-written is no run, and a later one of the same name is whole.
func TestHalfWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	s := New(path, generous)
	st := done(t, 1, 5)
	if err := os.MkdirAll(filepath.Join(path, unfinished+st.Name, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, ".wrktalk-agent"), []byte("wrktalk-agent history\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := kept(t, path); got != "" {
		t.Errorf("half-written, kept are %q", got)
	}
	if err := s.Keep(st); err != nil {
		t.Fatal(err)
	}
	if got := kept(t, path); got != "1" {
		t.Errorf("kept are %q", got)
	}
	if _, err := os.Stat(filepath.Join(path, unfinished+st.Name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was half-written is there: %v", err)
	}
}
