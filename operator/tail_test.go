package operator

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// running returns a task in running, and where it lies.
func running(t *testing.T) (*staging.Dir, *staging.Task) {
	t.Helper()
	dir, err := staging.Open(t.TempDir(), staging.Runner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	m := staging.Manifest{TaskID: "1397f0f1-0000-4000-8000-000000000001", Kind: task.KindDeploy, Token: "t"}
	draft, err := dir.Create(staging.Name(time.Now(), m.Kind, "1.0.0", m.TaskID))
	if err != nil {
		t.Fatal(err)
	}
	ready, err := draft.Publish(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := ready.Start(); err != nil {
		t.Fatal(err)
	}
	return dir, ready
}

func appendLog(t *testing.T, on *staging.Task, text string) {
	t.Helper()
	f, err := os.OpenFile(on.Path(staging.LogFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// What lies in the trash may be overwritten already: none of it is shown.
func TestTailShowsNothingOfTheTrash(t *testing.T) {
	dir, task := running(t)
	var out strings.Builder
	l, err := NewTail(dir, task, &out)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	appendLog(t, task, "first\n")
	if err := l.Copy(); err != nil {
		t.Fatal(err)
	}
	appendLog(t, task, "second\n")
	if err := os.Rename(task.Path(), filepath.Join(dir.Path(), "trash", task.Name)); err != nil {
		t.Fatal(err)
	}
	if err := l.Copy(); !errors.Is(err, ErrShredded) {
		t.Errorf("Copy returns %v", err)
	}
	if out.String() != "first\n" {
		t.Errorf("shown: %q", out.String())
	}
}

// The tail goes with the directory, and ends with everything that was said.
func TestTailEndsWithTheOutcome(t *testing.T) {
	dir, on := running(t)
	var out strings.Builder
	view, err := FindLocal(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewTail(dir, view, &out)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type end struct {
		o   task.Outcome
		err error
	}
	ended := make(chan end)
	go func() {
		o, err := l.Follow(context.Background())
		ended <- end{o, err}
	}()
	appendLog(t, on, "first\n")
	appendLog(t, on, strings.Repeat("x", 100_000)+"\nlast\n")
	if err := on.SaveOutcome(task.Outcome{Schema: task.OutcomeSchema, Message: "it is up"}); err != nil {
		t.Fatal(err)
	}
	if err := on.Complete(); err != nil {
		t.Fatal(err)
	}
	e := <-ended
	if e.err != nil || e.o.Message != "it is up" {
		t.Errorf("ended with %+v, %v", e.o, e.err)
	}
	if got := out.String(); !strings.HasPrefix(got, "first\nxxx") || !strings.HasSuffix(got, "x\nlast\n") || len(got) != 100_012 {
		t.Errorf("shown: %d bytes", len(got))
	}
}
