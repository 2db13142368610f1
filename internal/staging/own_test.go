package staging_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

var components = []staging.Role{staging.Fetcher, staging.Runner, staging.Notifier}

// lookOf describes everything at and below path, without the times of access.
func lookOf(t *testing.T, path string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			fmt.Fprintln(&b, p, info.Mode(), info.Size(), info.ModTime(), info.Sys().(*syscall.Stat_t).Ctim)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// makeStates creates the directories of a version that marked nothing.
func makeStates(t *testing.T, path string) {
	t.Helper()
	for _, s := range staging.States {
		if err := os.Mkdir(filepath.Join(path, string(s)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory that somebody uses is refused and left as it is, even where it holds
// directories that are called like the agent's.
func TestADirectoryInUseIsLeftAlone(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, path string){
		"a home": func(t *testing.T, path string) {
			for _, dir := range []string{"tmp", "ready/report", "done"} {
				if err := os.MkdirAll(filepath.Join(path, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, file := range []string{"tmp/draft.txt", "ready/report/manifest.json", "done/photo.jpg"} {
				if err := os.WriteFile(filepath.Join(path, file), []byte("theirs"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		},
		"all states and more": func(t *testing.T, path string) {
			makeStates(t, path)
			if err := os.WriteFile(filepath.Join(path, "theirs"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"a file for a state": func(t *testing.T, path string) {
			makeStates(t, path)
			if err := os.Remove(filepath.Join(path, "done")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(path, "done"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			make(t, path)
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
			before := lookOf(t, path)
			if err := staging.Check(path); err == nil || !strings.Contains(err.Error(), "in use by something else") {
				t.Errorf("Check returns %v", err)
			}
			for _, role := range components {
				if _, err := staging.Open(path, role); err == nil || !strings.Contains(err.Error(), "in use by something else") {
					t.Errorf("as %s, Open returns %v", role, err)
				}
			}
			if after := lookOf(t, path); after != before {
				t.Errorf("it was changed:\n%s\n%s", before, after)
			}
		})
	}
}

// What a version that marked nothing left is taken over with all that lies in it,
// and marked from then on.
func TestTheDirectoryOfAFormerVersionIsTakenOver(t *testing.T) {
	path := t.TempDir()
	makeStates(t, path)
	left := filepath.Join(path, "ready", "20261123T133915Z-deploy-2.5.0-1397f0f1")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(path, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := names(t, open(t, path, staging.Runner), staging.Ready); len(got) != 1 || got[0] != filepath.Base(left) {
		t.Errorf("ready holds %v", got)
	}
	if err := os.WriteFile(filepath.Join(path, "notes"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, path, staging.Fetcher)
	if _, err := os.Stat(filepath.Join(path, agentdir.Marker)); err != nil {
		t.Error(err)
	}
}

// Such a version took directories with other things in them, too, and goes on there.
func TestTheDirectoryThatAFormerVersionShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shared")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	makeStates(t, path)
	other := filepath.Join(path, "maintenance.json")
	if err := os.WriteFile(other, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, path, staging.Fetcher)
	if b, err := os.ReadFile(other); err != nil || string(b) != "{}" {
		t.Errorf("what else lies there is now %q, %v", b, err)
	}
}

// A start that is killed in the middle leaves a directory that the next one takes.
func TestAStartThatWasKilledIsRepeated(t *testing.T) {
	path := t.TempDir()
	open(t, path, staging.Fetcher).Close()
	for n := len(staging.States); n > 0; n-- {
		if err := os.Remove(filepath.Join(path, string(staging.States[n-1]))); err != nil {
			t.Fatal(err)
		}
		if err := staging.Check(path); err != nil {
			t.Errorf("with %d states: %v", n-1, err)
		}
	}
	open(t, path, staging.Fetcher)
}

// removals are what somebody may do to the directory of an agent that runs.
func removals() map[string]func(path string) error {
	all := map[string]func(path string) error{
		"all":     os.RemoveAll,
		"renamed": func(path string) error { return os.Rename(path, path+".old") },
		"emptied": func(path string) error {
			entries, err := os.ReadDir(path)
			for _, e := range entries {
				if err == nil {
					err = os.RemoveAll(filepath.Join(path, e.Name()))
				}
			}
			return err
		},
	}
	for _, s := range staging.States {
		all[string(s)] = func(path string) error { return os.RemoveAll(filepath.Join(path, string(s))) }
	}
	return all
}

// A directory that is removed under an agent that runs is made anew, and a task
// goes its way through it; the locks hold, and hints come without the timer.
func TestADirectoryThatWasRemovedIsMadeAnew(t *testing.T) {
	var removing sync.RWMutex
	t.Cleanup(staging.SetSettle(func() { // the time that removing takes
		removing.RLock()
		defer removing.RUnlock()
	}))
	for name, remove := range removals() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "staging")
			f, r, n := open(t, path, staging.Fetcher), open(t, path, staging.Runner), open(t, path, staging.Notifier)
			w := r.Watch(time.Hour, staging.Ready)
			defer w.Stop()
			awaitHint := func(what string, seen func() bool) {
				t.Helper()
				limit := time.After(5 * time.Minute)
				for done := false; !done; done = seen() {
					select {
					case <-w.Hints():
					case <-limit:
						t.Fatalf("no hint: %s", what)
					}
				}
			}
			<-w.Hints() // the first look
			removing.Lock()
			err := remove(path)
			removing.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			awaitHint("it is made anew", func() bool {
				_, err := r.List(staging.Ready)
				return err == nil
			})
			x := stage(t, f)
			awaitHint("a task is ready", func() bool { return len(names(t, r, staging.Ready)) == 1 })
			for _, err := range []error{x.Start(), x.ShredSecrets(), x.Complete()} {
				if err != nil {
					t.Fatal(err)
				}
			}
			done, err := n.List(staging.Done)
			if err != nil || len(done) != 1 {
				t.Fatalf("done holds %v, %v", done, err)
			}
			if err := done[0].Remove(); err != nil {
				t.Error(err)
			}
			for _, role := range components {
				if _, err := staging.Open(path, role); err == nil || !strings.Contains(err.Error(), "another "+string(role)) {
					t.Errorf("a second %s: %v", role, err)
				}
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("stat says %v, %v", info, err)
			}
		})
	}
}

// Who comes first to a directory that was made anew has it.
func TestADirectoryMadeAnewIsLocked(t *testing.T) {
	t.Cleanup(staging.SetSettle(func() {}))
	path := filepath.Join(t.TempDir(), "staging")
	first := open(t, path, staging.Runner)
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	second := open(t, path, staging.Runner)
	for range 2 {
		if _, err := first.List(staging.Ready); !errors.Is(err, staging.ErrUnusable) || !strings.Contains(err.Error(), "another runner (process") {
			t.Errorf("List returns %v", err)
		}
	}
	second.Close()
	if _, err := first.List(staging.Ready); err != nil {
		t.Errorf("once it is free, List returns %v", err)
	}
}

// What somebody else put in the place of the directory is refused as at start.
func TestADirectoryInThePlaceOfOursIsRefused(t *testing.T) {
	t.Cleanup(staging.SetSettle(func() {}))
	path := filepath.Join(t.TempDir(), "staging")
	f := open(t, path, staging.Fetcher)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path, "theirs"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := lookOf(t, path)
	if _, err := f.List(staging.Tmp); err == nil || !strings.Contains(err.Error(), "in use by something else") {
		t.Errorf("List returns %v", err)
	}
	if after := lookOf(t, path); after != before {
		t.Errorf("it was changed:\n%s\n%s", before, after)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.List(staging.Tmp); err != nil {
		t.Errorf("put back, List returns %v", err)
	}
}

// A file system that is mounted anew is gone on with; the directory below one that
// was unmounted is not.
func TestAFileSystemThatWentAway(t *testing.T) {
	t.Cleanup(staging.SetSettle(func() {}))
	path := t.TempDir()
	mount := func() {
		t.Helper()
		if err := syscall.Mount("tmpfs", path, "tmpfs", 0, "size=1m"); err != nil {
			t.Skipf("no file system can be mounted here: %v", err)
		}
	}
	unmount := func() error { return syscall.Unmount(path, syscall.MNT_DETACH) }
	mount()
	t.Cleanup(func() { _ = unmount() })
	f := open(t, path, staging.Fetcher)
	on := staging.MountOf(path)
	if on != path {
		t.Skipf("the kernel does not tell mount points: %s is on %s", path, on)
	}
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	want := "mounted at " + path + ", which is not mounted any more"
	if _, err := f.List(staging.Tmp); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("List returns %v", err)
	}
	if err := staging.CheckMounted(path, on); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("CheckMounted returns %v", err)
	}
	if entries, err := os.ReadDir(path); err != nil || len(entries) > 0 {
		t.Errorf("below, there is %v, %v", entries, err)
	}
	mount()
	if err := staging.CheckMounted(path, on); err != nil {
		t.Error(err)
	}
	stage(t, f)
}

// TestHolder is no test: it is the other process of the one below.
func TestHolder(t *testing.T) {
	path := os.Getenv("STAGING_TO_HOLD")
	if path == "" {
		t.Skip("run by another test")
	}
	lock, err := staging.LockAgent(path)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	fmt.Println("locked")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// The lock follows the directory when that is made anew.
func TestTheAgentsLockFollowsTheDirectory(t *testing.T) {
	t.Cleanup(staging.SetRelock(time.Millisecond))
	path := filepath.Join(t.TempDir(), "staging")
	lock, err := staging.LockAgent(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	open(t, path, staging.Fetcher)
	for limit := time.Now().Add(5 * time.Minute); staging.AgentHolds(path) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the new directory is not locked")
		}
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := staging.AgentHolds(path); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// A second agent is refused with the process id of the first, by whatever path it
// comes; a look at the lock takes it from nobody.
func TestASecondAgentIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "real", "staging")
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := staging.AgentHolds(path); err != nil {
		t.Errorf("where there is nothing: %v", err)
	}
	first := exec.Command(os.Args[0], "-test.run", "^TestHolder$")
	first.Env = append(os.Environ(), "STAGING_TO_HOLD="+path)
	in, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := first.StdoutPipe()
	if err == nil {
		err = first.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "locked"; {
	}
	for _, by := range []string{path, filepath.Join(dir, "link", "staging")} {
		want := fmt.Sprintf("another agent (process %d) is running on staging directory %s", first.Process.Pid, by)
		if err := staging.AgentHolds(by); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("AgentHolds returns %v", err)
		}
		if _, err := staging.LockAgent(by); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("LockAgent returns %v", err)
		}
	}
	in.Close()
	if err := first.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := staging.AgentHolds(path); err != nil {
		t.Errorf("after its end: %v", err)
	}
	lock, err := staging.LockAgent(path)
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
}
