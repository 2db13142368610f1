package main

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
	if err := ready.Take(); err != nil {
		t.Fatal(err)
	}
	return dir, ready
}

func say(t *testing.T, on *staging.Task, text string) {
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
	l, err := newTail(dir, task, &out)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	say(t, task, "first\n")
	if err := l.copy(); err != nil {
		t.Fatal(err)
	}
	say(t, task, "second\n")
	if err := os.Rename(task.Path(), filepath.Join(dir.Path(), "trash", task.Name)); err != nil {
		t.Fatal(err)
	}
	if err := l.copy(); !errors.Is(err, errShredded) {
		t.Errorf("copy says %v", err)
	}
	if out.String() != "first\n" {
		t.Errorf("shown: %q", out.String())
	}
}

// The tail goes with the directory, and ends with everything that was said.
func TestTailEndsWithTheOutcome(t *testing.T) {
	dir, on := running(t)
	var out strings.Builder
	view, err := findLocal(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	l, err := newTail(dir, view, &out)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	type end struct {
		o   task.Outcome
		err error
	}
	ended := make(chan end)
	go func() {
		o, err := l.follow(context.Background())
		ended <- end{o, err}
	}()
	say(t, on, "first\n")
	say(t, on, strings.Repeat("x", 100_000)+"\nlast\n")
	if err := on.SetOutcome(task.Outcome{Schema: task.OutcomeSchema, Message: "it is up"}); err != nil {
		t.Fatal(err)
	}
	if err := on.Finish(); err != nil {
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
