package staging_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

// A request to cancel goes with the task from state to state, is no difference
// to the manifest, and stays in a draft that is staged anew.
func TestCancelRequestTravelsWithTheTask(t *testing.T) {
	path := t.TempDir()
	fetcher, runner := open(t, path, staging.Fetcher), open(t, path, staging.Runner)
	ready := stage(t, fetcher)
	root, err := ready.Root()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, ok, err := staging.CancelRequested(root); ok || err != nil {
		t.Fatalf("without a request: %v, %v", ok, err)
	}
	if err := ready.RequestCancel("wrong\nversion \x00"); err != nil {
		t.Fatal(err)
	}
	tasks, err := runner.List(staging.Ready)
	if err != nil || len(tasks) != 1 {
		t.Fatalf("%v, %v", tasks, err)
	}
	if err := tasks[0].Start(); err != nil {
		t.Fatal(err)
	}
	if state, err := runner.Where(ready.Name); state != staging.Running || err != nil {
		t.Errorf("it lies in %q, %v", state, err)
	}
	// The root is that of before the move.
	if reason, ok, err := staging.CancelRequested(root); reason != "wrong version \uFFFD" || !ok || err != nil {
		t.Errorf("%q, %v, %v", reason, ok, err)
	}
	m, err := tasks[0].Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if err := tasks[0].Verify(m); err != nil {
		t.Errorf("the request counts as a difference: %v", err)
	}
	if err := tasks[0].Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := runner.Where(ready.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a task that is gone: %v", err)
	}

	draft, err := fetcher.Create("again")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(draft.SaveManifest(claim), draft.Task().RequestCancel(""), draft.Reset()); err != nil {
		t.Fatal(err)
	}
	if reason, ok, err := staging.CancelRequested(draft.Root()); reason != "" || !ok || err != nil {
		t.Errorf("after staging anew: %q, %v, %v", reason, ok, err)
	}
}

// What root leaves in a directory of the agent's user belongs to that user, who
// could not shred it otherwise.
func TestCancelRequestOfRootIsGivenAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can act for another user")
	}
	d := open(t, t.TempDir(), staging.Fetcher)
	task := stage(t, d)
	if err := os.Chown(task.Path(), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := task.RequestCancel("x"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(task.Path(), staging.CancelFile))
	if err != nil {
		t.Fatal(err)
	}
	if uid := owner(info); uid != 65534 {
		t.Errorf("the request belongs to user %d", uid)
	}
}

// Looking whether a component runs finds it, and disturbs nobody.
func TestLockedTellsWhoRuns(t *testing.T) {
	path := t.TempDir()
	fetcher := open(t, path, staging.Fetcher)
	reader := open(t, path, staging.Reader)
	for role, want := range map[staging.Role]bool{staging.Fetcher: true, staging.Runner: false} {
		if locked, err := reader.Locked(role); locked != want || err != nil {
			t.Errorf("%s: %v, %v", role, locked, err)
		}
	}
	open(t, path, staging.Runner) // the look left no lock
	fetcher.Close()
	if locked, err := reader.Locked(staging.Fetcher); locked || err != nil {
		t.Errorf("a fetcher that ended: %v, %v", locked, err)
	}
}

func owner(info fs.FileInfo) int {
	return int(info.Sys().(*syscall.Stat_t).Uid)
}
