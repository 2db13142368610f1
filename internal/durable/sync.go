package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// SyncDir flushes the entries of the directory name, "." for the root itself.
func SyncDir(root *os.Root, name string) error {
	if err := fault.Point("durable.syncdir.sync:" + shown(root, name)); err != nil {
		return fmt.Errorf("sync directory %s: %w", shown(root, name), err)
	}
	if err := syncDir(root, name); err != nil {
		return fmt.Errorf("sync directory %s: %w", shown(root, name), err)
	}
	return nil
}

func syncDir(root *os.Root, name string) error {
	d, err := root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// SyncTree flushes name: a regular file, or a directory with every regular file
// and directory below it, the deepest first. Symbolic links are not followed,
// other kinds of file have nothing to flush. It holds one open file per level.
func SyncTree(root *os.Root, name string) error {
	if err := fault.Point("durable.synctree.sync:" + shown(root, name)); err != nil {
		return fmt.Errorf("sync %s: %w", shown(root, name), err)
	}
	info, err := root.Lstat(name)
	if err != nil {
		return fmt.Errorf("sync %s: %w", shown(root, name), err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil
	}
	// The type was read without following; O_NOFOLLOW is of no use here, since
	// os.Root resolves links by itself.
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("sync %s: %w", shown(root, name), err)
	}
	if err := syncOpen(f, info.IsDir()); err != nil {
		return fmt.Errorf("sync %s: %w", shown(root, name), err)
	}
	return nil
}

// syncOpen flushes f and, when it is a directory, what is below it; it closes f.
func syncOpen(f *os.File, isDir bool) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	for isDir {
		entries, rerr := f.ReadDir(256)
		for _, e := range entries {
			if !e.IsDir() && !e.Type().IsRegular() {
				continue
			}
			if err := syncEntry(f, e.Name(), e.IsDir()); err != nil {
				return err
			}
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	return f.Sync()
}

func syncEntry(dir *os.File, name string, isDir bool) error {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, flags, 0)
		if err == unix.EINTR {
			continue
		}
		full := path.Join(dir.Name(), name)
		if err != nil {
			return &os.PathError{Op: "open", Path: full, Err: err}
		}
		return syncOpen(os.NewFile(uintptr(fd), full), isDir)
	}
}
