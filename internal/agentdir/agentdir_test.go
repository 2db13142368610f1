package agentdir_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
)

var use = agentdir.Use{
	Name: "sample", Setting: "sample.dir",
	Former: func(entries []fs.DirEntry) bool {
		return len(entries) == 2 && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "kept" })
	},
}

// lookOf describes everything at and below path, without the times of access.
func lookOf(t *testing.T, path string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&b, p, info.Mode(), info.Size(), info.ModTime(), st.Uid, st.Ctim)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// fill creates files, and directories for names that end in a slash.
func fill(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else if err == nil {
			err = os.WriteFile(path, []byte("theirs"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A directory is taken only if that takes it from nobody; any other one is left as
// it is, to the last time stamp.
func TestOnlyADirectoryOfOnesOwnIsOpened(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		holds   []string
		refused string // "" for a directory that is taken
	}{
		{"empty", nil, ""},
		{"a fresh file system", []string{"lost+found/"}, ""},
		{"what a crash left of a marker", []string{".new-ABCDEF.tmp"}, ""},
		{"a former layout", []string{"kept", "other/"}, ""},
		{"a former layout on a file system", []string{"kept", "other/", "lost+found/"}, ""},
		{"a file", []string{"notes.txt"}, `it holds "notes.txt", and nothing marks it`},
		{"a hidden file", []string{".bashrc"}, `it holds ".bashrc"`},
		{"many", []string{"e", "d", "c", "b", "a"}, `it holds "a", "b", "c" and 2 more`},
		{"a former layout and more", []string{"kept", "other", "theirs"}, "in use by something else"},
		{"a file called as a marker", []string{agentdir.Marker, "notes.txt"}, `it holds "notes.txt"`},
		{"a directory called as a marker", []string{agentdir.Marker + "/"}, `it holds ".wrktalk-agent"`},
		{"a file called lost+found", []string{"lost+found"}, `it holds "lost+found"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			fill(t, dir, c.holds...)
			before := lookOf(t, dir)
			checked := use.Check(dir)
			if after := lookOf(t, dir); after != before {
				t.Errorf("Check changed it:\n%s\n%s", before, after)
			}
			root, err := use.Open(dir)
			if (checked == nil) != (err == nil) {
				t.Errorf("Check returns %v, Open %v", checked, err)
			}
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) || !strings.HasPrefix(err.Error(), "sample.dir "+dir) {
					t.Errorf("Open returns %v, want %q", err, c.refused)
				}
				if after := lookOf(t, dir); after != before {
					t.Errorf("Open changed it:\n%s\n%s", before, after)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			// Whatever lies in it now, it is the agent's.
			fill(t, dir, "anything", "else/")
			if again, err := use.Open(dir); err != nil {
				t.Errorf("opened again: %v", err)
			} else {
				again.Close()
			}
			other := agentdir.Use{Name: "another", Setting: "another.dir"}
			if err := other.Check(dir); err == nil || !strings.Contains(err.Error(), "another use (sample)") {
				t.Errorf("for another use, Check returns %v", err)
			}
		})
	}
}

// A directory that is not there is created for the agent's user alone.
func TestAMissingDirectoryIsCreated(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := use.Check(dir); err != nil {
		t.Fatal(err)
	}
	root, err := use.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("stat says %v, %v", info, err)
	}
	text, err := root.ReadFile(agentdir.Marker)
	if err != nil || !strings.HasPrefix(string(text), "wrktalk-agent sample\n") || !strings.Contains(string(text), "sample.dir") {
		t.Errorf("the marker holds %q, %v", text, err)
	}
}

// A directory of the system is refused by any name, empty or not, and so is what
// cannot be one.
func TestADirectoryOfTheSystemIsRefused(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	fill(t, filepath.Dir(file), "file")
	for path, want := range map[string]string{
		"/": "a directory of the system", "/etc": "a directory of the system", "/tmp": "a directory of the system",
		"/srv": "a directory of the system", "/var/lib": "a directory of the system", link: "directory of the system",
		"/var/../etc/": "a directory of the system", file: "not a directory",
	} {
		if err := use.Check(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: Check returns %v", path, err)
		}
	}
}

// A marker of another user is none: in a directory that everybody may write to,
// anybody could write one.
func TestAMarkerOfAnotherUserIsNone(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	dir := t.TempDir()
	fill(t, dir, "theirs")
	if err := os.WriteFile(filepath.Join(dir, agentdir.Marker), []byte("wrktalk-agent sample\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := use.Check(dir); err != nil {
		t.Fatalf("with one of our own: %v", err)
	}
	if err := os.Chown(filepath.Join(dir, agentdir.Marker), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := use.Check(dir); err == nil {
		t.Error("it is taken")
	}
}

// What another user could replace is found, however the way leads there.
func TestAPathThatOthersCanReplace(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	dir := t.TempDir()
	fill(t, dir, "open/mine/", "given/mine/", "sticky/mine/", "plain/mine/")
	for _, err := range []error{
		os.Chmod(filepath.Join(dir, "open"), 0o777),
		os.Chown(filepath.Join(dir, "given"), 12345, -1),
		os.Chmod(filepath.Join(dir, "sticky"), 0o777|fs.ModeSticky),
		os.Symlink("given", filepath.Join(dir, "link")),
		os.Symlink("plain", filepath.Join(dir, "theirlink")),
		os.Lchown(filepath.Join(dir, "theirlink"), 12345, -1),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"plain/mine": "", "sticky/mine": "", "plain/none/below": "", "plain": "",
		"open/mine": "every user, as " + dir + "/open", "open/mine/below": "every user", "given/mine": "user 12345, to whom " + dir + "/given",
		"link/mine": "user 12345", "theirlink/mine": "user 12345, to whom " + dir + "/theirlink", "theirlink": "user 12345",
	} {
		got := agentdir.Exposed(filepath.Join(dir, path))
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// What a crash left of a marker goes when the directory is marked.
func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, ".new-ABCDEF.tmp")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := agentdir.Use{Name: "test", Setting: "test.dir"}.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := os.Lstat(left); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// The agent's processes may find at the same moment that a directory is gone, and each
// makes and marks it anew.
func TestOpenedByManyAtOnce(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "ours")
		failed := make(chan error)
		for range 4 {
			go func() {
				root, err := agentdir.Use{Name: "test", Setting: "test.dir"}.Open(path)
				if err == nil {
					err = root.Close()
				}
				failed <- err
			}()
		}
		for range 4 {
			if err := <-failed; err != nil {
				t.Error(err)
			}
		}
	}
}
