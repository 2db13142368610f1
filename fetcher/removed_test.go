package fetcher

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

// A staging directory that is removed under a fetcher that runs, whole or in part,
// is made anew; the next task is staged, and nobody hears of a database.
func TestTheStagingDirectoryIsRemoved(t *testing.T) {
	for _, part := range []string{"", "tmp", "ready", "running"} {
		t.Run("part "+part, func(t *testing.T) {
			fx := newFixture(t)
			fx.opts.Poll = 50 * time.Millisecond
			fx.start()
			fx.eventually("it is idle", func() bool { fx.mu.Lock(); defer fx.mu.Unlock(); return fx.said })
			if err := os.RemoveAll(filepath.Join(fx.staging, part)); err != nil {
				t.Fatal(err)
			}
			id := fx.addTask("deploy", fx.addRelease("1.0.0"))
			fx.eventually("the task is staged", func() bool {
				tasks, err := fx.reader.List(staging.Ready)
				return err == nil && len(tasks) == 1
			})
			if _, m := fx.awaitReady(); m.TaskID != id || m.Rejection != "" {
				t.Errorf("manifest is %+v", m)
			}
			fx.mu.Lock()
			defer fx.mu.Unlock()
			if fx.reason != "" || strings.Contains(fx.log.String(), "ERROR") {
				t.Errorf("not ready: %q\n%s", fx.reason, fx.log.String())
			}
		})
	}
}

// A directory that is removed while a task is staged into it costs the task
// nothing: it is staged anew under the same claim.
func TestADraftIsRemovedWhileItIsStaged(t *testing.T) {
	fx := newFixture(t)
	id := fx.addTask("deploy", fx.addRelease("1.0.0"))
	fx.leaveDraft(func(*staging.Manifest) {})
	fx.open()
	drafts, err := fx.dir.Drafts()
	if err != nil || len(drafts) != 1 {
		t.Fatalf("drafts are %v, %v", drafts, err)
	}
	m, err := drafts[0].Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(fx.staging); err != nil {
		t.Fatal(err)
	}
	f := New(fx.db, fx.dir, fx.opts)
	f.ready = func(string) {}
	f.stage(t.Context(), drafts[0], *m)
	dir, staged := fx.awaitReady()
	if staged.TaskID != id || staged.Token != m.Token || staged.Rejection != "" {
		t.Errorf("manifest is %+v", staged)
	}
	if err := dir.Verify(staged); err != nil {
		t.Error(err)
	}
}

// What the fetcher may not use any more ends it, with the reason.
func TestTheStagingDirectoryIsReplaced(t *testing.T) {
	fx := newFixture(t)
	fx.opts.Poll = 50 * time.Millisecond
	fx.start()
	fx.eventually("it is idle", func() bool { fx.mu.Lock(); defer fx.mu.Unlock(); return fx.said })
	aside := t.TempDir()
	for _, step := range []error{
		os.WriteFile(filepath.Join(aside, "theirs"), nil, 0o600),
		os.Rename(fx.staging, filepath.Join(filepath.Dir(aside), "ours")),
		os.Rename(aside, fx.staging),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	select {
	case err := <-fx.ended:
		if err == nil || !strings.Contains(err.Error(), "in use by something else") {
			t.Errorf("Run returns %v", err)
		}
	case <-time.After(eventTimeout):
		t.Fatal("it goes on")
	}
	fx.ended = nil
}
