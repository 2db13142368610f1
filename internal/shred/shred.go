// Package shred removes files so that their old content is overwritten first.
//
// A regular file is overwritten in place with random bytes, flushed, truncated
// and unlinked. In place matters: truncating first gives the blocks back, and
// the random bytes land elsewhere while the old content stays on the disk.
//
// What this cannot do: file systems that copy on write (btrfs, ZFS, bcachefs,
// some overlay and network file systems), ext4 with data=journal, snapshots and
// backups keep the old blocks by design; SSDs and SD cards remap what is
// overwritten and may keep the old cells readable to whoever reads the flash
// itself. On those, removing the name is all that happens. The honest answer
// for secrets is a tmpfs (or an encrypted volume) under the staging directory.
//
// Symbolic links are never followed, not even in the directories that lead to a
// name. Only the content of a regular file with a single name is overwritten:
// with further hard links the content belongs to somebody else as well, and only
// the name is removed. When all links lie inside the tree, the last one to go is
// the single name. FIFOs, sockets and devices are removed without being opened.
// Another file system mounted inside the tree is refused.
//
// Every function may be called again after an error or a crash and then
// finishes the work; what is already gone is not an error, nor is what another
// call shreds at the same time. When overwriting
// fails, the file keeps its name, so that the failure is seen and the next call
// tries again. On a full file system alone, where overwriting may need space
// that only removing frees, the file is removed and the error reported.
package shred

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// File shreds the single file name, and flushes the directory that held it. A
// missing file is no error, a directory is.
func File(root *os.Root, name string) error {
	return run(root, name, (*shredder).file)
}

// Tree shreds name and, when it is a directory, everything below it. It goes on
// past errors and returns the first few joined, the rest counted; what could not
// be shredded remains. It holds one open directory per level and needs constant
// memory beside that.
func Tree(root *os.Root, name string) error {
	return run(root, name, (*shredder).entry)
}

// run opens the directory that holds name, lets remove do the work there and
// flushes it.
func run(root *os.Root, name string, remove func(s *shredder, dir *os.File, base, shown string)) error {
	if !filepath.IsLocal(name) || path.Clean(name) == "." {
		return fmt.Errorf("shred %q: name must lie below the root: %w", name, fs.ErrInvalid)
	}
	name = path.Clean(name)
	parent, err := openParent(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("shred %s: %w", name, err)
	}
	defer parent.Close()
	s := &shredder{prefix: filepath.Base(root.Name())}
	remove(s, parent, path.Base(name), name)
	// Also when nothing was left to remove: an earlier call may have been
	// interrupted just before this.
	if err := parent.Sync(); err != nil {
		s.fail(name, fmt.Errorf("sync its directory: %w", err))
	}
	return s.err()
}

// openParent opens the directory that holds name. It walks by itself, since
// os.Root follows symbolic links that stay inside.
func openParent(root *os.Root, name string) (*os.File, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	parts := strings.Split(name, "/")
	for _, part := range parts[:len(parts)-1] {
		next, err := openAt(dir, part, unix.O_RDONLY|unix.O_DIRECTORY)
		_ = dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// openAt opens an entry of dir without following a symbolic link and without
// waiting for the other end of a FIFO.
func openAt(dir *os.File, base string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), base, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: base, Err: err}
		}
		return os.NewFile(uintptr(fd), base), nil
	}
}

// statAt returns the status of an entry of dir, not following a symbolic link.
func statAt(dir *os.File, base string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// permit gives the owner the rights in want on an entry of dir that has mode.
// It goes through a path-only descriptor: fchmodat follows symbolic links, and
// fchmodat2 is younger than the kernels this runs on.
func permit(dir *os.File, base string, mode, want uint32) error {
	if mode&want == want {
		return nil
	}
	f, err := openAt(dir, base, unix.O_PATH)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != mode&unix.S_IFMT {
		return errors.New("entry was replaced while being shredded")
	}
	return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), fs.FileMode(want))
}
