package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func newRoot(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	return openRoot(t, dir), dir
}

// names lists everything below dir, sorted.
func names(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if p != dir {
			rel, _ := filepath.Rel(dir, p)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func TestWriteFileReplacesAndSetsMode(t *testing.T) {
	root, dir := newRoot(t)
	if err := root.Mkdir("d", 0o700); err != nil {
		t.Fatal(err)
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, content := range []string{"first", "", "the third"} {
		if err := WriteFile(root, "d/f", []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := root.ReadFile("d/f")
		if err != nil || string(got) != content {
			t.Errorf("read %q, %v; want %q", got, err, content)
		}
	}
	info, err := root.Stat("d/f")
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v; want 0644 in spite of the umask", info.Mode(), err)
	}
	if got := names(t, dir); got != "d d/f" {
		t.Errorf("left %q behind", got)
	}
}

func TestWriteFileReplacesALinkNotItsTarget(t *testing.T) {
	root, dir := newRoot(t)
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "f")); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(root, "f", []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(outside); string(got) != "keep" {
		t.Errorf("the link's target became %q", got)
	}
	if info, err := root.Lstat("f"); err != nil || !info.Mode().IsRegular() {
		t.Errorf("f is %v, %v", info.Mode(), err)
	}
}

func TestWriteFileFailureLeavesTheOldContent(t *testing.T) {
	root, dir := newRoot(t)
	if err := root.MkdirAll("d/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"d":         syscall.EEXIST, // a directory cannot be replaced by a file
		"missing/f": fs.ErrNotExist,
		"../f":      nil,
	} {
		err := WriteFile(root, name, []byte("x"), 0o600)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", name, err, want)
		}
	}
	if got := names(t, dir); got != "d d/sub" {
		t.Errorf("left %q behind", got)
	}
}

func TestIsTemp(t *testing.T) {
	for name, want := range map[string]bool{
		".new-ABC.tmp": true, ".new-ABC": false, "manifest.json": false, ".tmp": false, "x.new-A.tmp": false,
	} {
		if IsTemp(name) != want {
			t.Errorf("IsTemp(%q) is %v", name, !want)
		}
	}
}

func TestRename(t *testing.T) {
	root, dir := newRoot(t)
	for _, d := range []string{"from/task/payload", "from/empty", "to/full/x", "to/empty"} {
		if err := root.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	from, to := openRoot(t, filepath.Join(dir, "from")), openRoot(t, filepath.Join(dir, "to"))

	if err := Rename(from, "task", to, "full"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("onto a full directory: %v, want ENOTEMPTY", err)
	}
	if err := Rename(from, "gone", to, "new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a missing name: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "../to", "a/b", "/etc", "a\x00b"} {
		if err := Rename(from, bad, to, "new"); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("old name %q: %v, want invalid", bad, err)
		}
		if err := Rename(from, "task", to, bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("new name %q: %v, want invalid", bad, err)
		}
	}
	if err := Rename(from, "empty", to, "empty"); err != nil {
		t.Errorf("onto an empty directory: %v", err)
	}
	if err := Rename(from, "task", to, "moved"); err != nil {
		t.Error(err)
	}
	const want = "from to to/empty to/full to/full/x to/moved to/moved/payload"
	if got := names(t, dir); got != want {
		t.Errorf("tree is %q, want %q", got, want)
	}
}

func TestMkdirAndRemove(t *testing.T) {
	root, dir := newRoot(t)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	if err := Mkdir(root, "d", 0o755); err != nil {
		t.Fatal(err)
	}
	if info, err := root.Stat("d"); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := Mkdir(root, "d", 0o700); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Mkdir: %v, want exists", err)
	}
	if err := Mkdir(root, "../d", 0o700); err == nil {
		t.Error("Mkdir left the root")
	}
	if err := WriteFile(root, "d/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(root, "d"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("Remove of a full directory: %v", err)
	}
	for _, name := range []string{"d/f", "d"} {
		if err := Remove(root, name); err != nil {
			t.Error(err)
		}
	}
	if err := Remove(root, "d"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove of a missing name: %v", err)
	}
	if got := names(t, dir); got != "" {
		t.Errorf("left %q", got)
	}
}

func TestSyncTreeWalksWithoutFollowing(t *testing.T) {
	root, dir := newRoot(t)
	if err := root.MkdirAll("d/a/b/c", 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 600 { // more than one batch of entries
		name := filepath.Join(dir, "d/a", strings.Repeat("n", i%200+1)+string(rune('a'+i/200)))
		if err := os.WriteFile(name, []byte{1}, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Opening either of these for a flush would fail or wait for ever.
	if err := unix.Mkfifo(filepath.Join(dir, "d/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := root.Symlink("nowhere", "d/dangling"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "d/a/b", "d/fifo", "d/dangling", "."} {
		if err := SyncTree(root, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := SyncTree(root, "gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing name: %v", err)
	}
	if err := SyncDir(root, "d"); err != nil {
		t.Error(err)
	}
	if err := SyncDir(root, "d/fifo"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("SyncDir of a FIFO: %v, want ENOTDIR", err)
	}
}
