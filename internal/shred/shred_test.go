package shred

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func newRoot(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root, dir
}

func write(t *testing.T, name string, data []byte, perm fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, perm); err != nil {
		t.Fatal(err)
	}
}

func missing(t *testing.T, name string) {
	t.Helper()
	if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there (%v)", name, err)
	}
}

func holds(t *testing.T, name, want string) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s holds %.40q (%v), want %q", name, got, err, want)
	}
}

// TestDefect04OverwriteHitsTheOldInode reads through a descriptor from before: what it
// sees is the old inode's content, whatever became of the name.
func TestDefect04OverwriteHitsTheOldInode(t *testing.T) {
	_, dir := newRoot(t)
	for _, size := range []int{1, 4095, chunkSize, 2*chunkSize + 17} {
		name := filepath.Join(dir, "secret")
		secret := bytes.Repeat([]byte("hunter2 "), size/8+1)[:size]
		write(t, name, secret, 0o600)
		before, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := new(shredder).overwrite(f, int64(size)); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(before)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != size {
			t.Errorf("length became %d, want %d: blocks beyond the end keep the secret", len(got), size)
		}
		if size > 1 && bytes.Contains(got, []byte("hu")) && bytes.Contains(got, secret[:min(size, 64)]) {
			t.Error("the old inode still holds the secret")
		}
		if size >= chunkSize && bytes.Equal(got[:4096], got[4096:8192]) {
			t.Error("the overwriting bytes repeat")
		}
		_, _ = before.Close(), f.Close()
	}
}

// TestFileTruncatesTheOldInode watches the inode, not the name.
func TestFileTruncatesTheOldInode(t *testing.T) {
	root, dir := newRoot(t)
	name := filepath.Join(dir, "secret")
	write(t, name, []byte("hunter2"), 0o400)
	before, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	for range 2 { // the second call finds nothing, and that is no error
		if err := File(root, "secret"); err != nil {
			t.Fatal(err)
		}
		missing(t, name)
	}
	if info, err := before.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("the old inode has %d bytes, %v", info.Size(), err)
	}
}

func TestDefect04TreeLeavesTheOutsideAlone(t *testing.T) {
	root, dir := newRoot(t)
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	write(t, victim, []byte("keep"), 0o600)

	task := filepath.Join(dir, "task")
	write(t, filepath.Join(task, "payload/a"), []byte("secret"), 0o400)
	write(t, filepath.Join(task, "payload/empty"), nil, 0o600)
	write(t, filepath.Join(task, "twice"), []byte("secret"), 0o600)
	write(t, filepath.Join(task, "-rf\n\xff name"), []byte("secret"), 0o600)
	if err := os.WriteFile(filepath.Join(dir, "beside"), []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		"link-file": victim, "link-dir": outside, "payload/link-up": "../../beside", "loop": "loop",
	} {
		if err := os.Symlink(to, filepath.Join(task, from)); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"hard-out": victim, "payload/hard-in": filepath.Join(task, "twice")} {
		if err := os.Link(to, filepath.Join(task, from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(task, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A socket's path is limited to 108 bytes, a test's directory is not.
	fd, err := os.Open(task)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	sock, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/sock", fd.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	sock.(*net.UnixListener).SetUnlinkOnClose(false)
	defer sock.Close()

	for range 2 {
		if err := Tree(root, "task"); err != nil {
			t.Fatal(err)
		}
		missing(t, task)
	}
	holds(t, victim, "keep")
	holds(t, filepath.Join(dir, "beside"), "keep")
}

func TestNamesAreHeldToTheRoot(t *testing.T) {
	root, dir := newRoot(t)
	outside := t.TempDir()
	write(t, filepath.Join(outside, "victim"), []byte("keep"), 0o600)
	write(t, filepath.Join(dir, "real/f"), []byte("keep"), 0o600)
	for name, to := range map[string]string{"out": outside, "in": "real"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"", ".", "/", "..", "../x", "/etc/passwd", "real/..", "out/victim", "in/f"} {
		for op, f := range map[string]func(*os.Root, string) error{"File": File, "Tree": Tree} {
			if err := f(root, name); err == nil {
				t.Errorf("%s(%q) was accepted", op, name)
			}
		}
	}
	holds(t, filepath.Join(outside, "victim"), "keep")
	holds(t, filepath.Join(dir, "real/f"), "keep")
	if err := Tree(root, "gone/deeper"); err != nil {
		t.Errorf("below a missing directory: %v", err)
	}
	// A link itself may be removed; what it names may not.
	if err := File(root, "out"); err != nil {
		t.Error(err)
	}
	missing(t, filepath.Join(dir, "out"))
	holds(t, filepath.Join(outside, "victim"), "keep")
}

func TestFileRefusesADirectory(t *testing.T) {
	root, dir := newRoot(t)
	write(t, filepath.Join(dir, "d/f"), []byte("keep"), 0o600)
	if err := File(root, "d"); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("got %v, want EISDIR", err)
	}
	holds(t, filepath.Join(dir, "d/f"), "keep")
}

// TestHardLinkKeepsItsContent: the other name belongs to somebody else.
func TestHardLinkKeepsItsContent(t *testing.T) {
	root, dir := newRoot(t)
	write(t, filepath.Join(dir, "other"), []byte("keep"), 0o600)
	if err := root.Link("other", "f"); err != nil {
		t.Fatal(err)
	}
	if err := File(root, "f"); err != nil {
		t.Fatal(err)
	}
	missing(t, filepath.Join(dir, "f"))
	holds(t, filepath.Join(dir, "other"), "keep")
}

// TestLastHardLinkIsOverwritten: with all names inside the tree, the content is
// nobody else's.
func TestLastHardLinkIsOverwritten(t *testing.T) {
	root, dir := newRoot(t)
	write(t, filepath.Join(dir, "t/a"), []byte("secret"), 0o600)
	for _, name := range []string{"t/b", "t/c"} {
		if err := root.Link("t/a", name); err != nil {
			t.Fatal(err)
		}
	}
	inode, err := os.Open(filepath.Join(dir, "t/a"))
	if err != nil {
		t.Fatal(err)
	}
	defer inode.Close()
	if err := Tree(root, "t"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(inode); err != nil || len(got) != 0 {
		t.Errorf("the inode still holds %q, %v", got, err)
	}
}

func TestTreeIsWideAndDeep(t *testing.T) {
	root, dir := newRoot(t)
	for i := range 3 * batchSize {
		write(t, filepath.Join(dir, "t/wide", fmt.Sprint(i)), []byte("x"), 0o600)
	}
	write(t, filepath.Join(dir, "t", strings.Repeat("d/", 200), "f"), []byte("x"), 0o600)
	if err := Tree(root, "t"); err != nil {
		t.Fatal(err)
	}
	missing(t, filepath.Join(dir, "t"))
}

// TestTreeOpensWhatIsClosed needs a user whom permissions bind: as root the
// test runs itself again as nobody.
func TestTreeOpensWhatIsClosed(t *testing.T) {
	if asNobody(t) {
		return
	}
	root, dir := newRoot(t)
	write(t, filepath.Join(dir, "t/locked/sub/f"), []byte("secret"), 0o600)
	write(t, filepath.Join(dir, "t/blind/f"), []byte("secret"), 0o600)
	for _, p := range []struct {
		name string
		mode fs.FileMode
	}{{"t/locked/sub/f", 0}, {"t/locked/sub", 0o500}, {"t/locked", 0}, {"t/blind", 0o300}, {"t", 0o500}} {
		if err := os.Chmod(filepath.Join(dir, p.name), p.mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := Tree(root, "t"); err != nil {
		t.Fatal(err)
	}
	missing(t, filepath.Join(dir, "t"))
}

// TestTreeGoesOnPastErrors runs a program from inside the tree: the kernel
// forbids to write to it (ETXTBSY) for as long as it runs.
func TestTreeGoesOnPastErrors(t *testing.T) {
	root, dir := newRoot(t)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	busy := filepath.Join(dir, "t/m/busy")
	write(t, busy, self, 0o700)
	for _, name := range []string{"t/a", "t/m/b", "t/z/f"} {
		write(t, filepath.Join(dir, name), []byte("secret"), 0o600)
	}
	in, stop := startBlocked(t, busy)

	err = Tree(root, "t")
	if !errors.Is(err, syscall.ETXTBSY) || !strings.Contains(err.Error(), "t/m/busy") {
		t.Errorf("got %v, want ETXTBSY on t/m/busy", err)
	}
	for _, name := range []string{"t/a", "t/m/b", "t/z"} {
		missing(t, filepath.Join(dir, name))
	}
	if _, err := os.Lstat(busy); err != nil {
		t.Errorf("what could not be overwritten lost its name: %v", err)
	}

	_ = in.Close()
	stop()
	if err := Tree(root, "t"); err != nil {
		t.Errorf("second call: %v", err)
	}
	missing(t, filepath.Join(dir, "t"))
}

// Two that shred one tree do not stumble over each other.
func TestTwoAtOnce(t *testing.T) {
	root, dir := newRoot(t)
	for range 10 {
		for i := range 100 {
			write(t, filepath.Join(dir, fmt.Sprintf("t/%d/%d", i%10, i)), []byte("secret"), 0o600)
		}
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- Tree(root, "t") }()
		}
		for range 2 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		missing(t, filepath.Join(dir, "t"))
	}
}

func TestManyErrorsAreCounted(t *testing.T) {
	s := &shredder{}
	for i := range 1000 {
		s.fail(fmt.Sprint(i), syscall.EIO)
	}
	if got := s.err().Error(); !strings.Contains(got, "990 more") || strings.Count(got, "\n") != maxFailures {
		t.Errorf("got %q", got)
	}
}

func BenchmarkOverwrite(b *testing.B) {
	const size = 200 << 20
	f, err := os.CreateTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(size)
	s := &shredder{}
	for b.Loop() {
		if err := s.overwrite(f, size); err != nil {
			b.Fatal(err)
		}
	}
}
