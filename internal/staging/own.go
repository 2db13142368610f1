package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
)

// ownOf is what makes the directory that info describes the staging directory; info
// is nil where there is none.
//
// A version of the agent that marked nothing left one directory per state. It took
// whatever directory it was pointed at, other files included. So where others lie
// there, it must have been the agent who made all of these: they, and the directory,
// are for its user alone.
func ownOf(info fs.FileInfo) agentdir.Use {
	return agentdir.Use{
		Name: "staging", Setting: "staging.dir",
		Former: func(entries []fs.DirEntry) bool {
			states, private := 0, info != nil && isPrivate(info)
			for _, e := range entries {
				if e.IsDir() && slices.Contains(States, State(e.Name())) {
					states++
					of, err := e.Info()
					private = private && err == nil && isPrivate(of)
				}
			}
			return states == len(States) && (private || states == len(entries))
		},
	}
}

// isPrivate reports whether a directory is as an agent of this user creates them.
func isPrivate(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid() && info.Mode().Perm() == 0o700
}

// OwnerError is the error of a staging directory that belongs to another user.
type OwnerError struct {
	Path string
	UID  int
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("staging.dir %s belongs to user %d, not to the agent's user %d: change its owner or name another directory", e.Path, e.UID, os.Geteuid())
}

// Check reports why the directory at path is none that can be the staging
// directory: because it is not the agent's, or, an *OwnerError, not its user's. The
// error is one sentence. It changes nothing; a directory that does not exist is no
// error.
func Check(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ownOf(nil).Check(path)
	case err != nil:
		return fmt.Errorf("staging.dir: %w", err)
	case !info.IsDir():
		return fmt.Errorf("staging.dir %s is not a directory", path)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	foreign := ok && int(st.Uid) != os.Geteuid()
	if err := ownOf(info).Check(path); err != nil && (!foreign || !errors.Is(err, fs.ErrPermission)) {
		return err
	}
	if foreign {
		return &OwnerError{path, int(st.Uid)}
	}
	return nil
}

// openOwn opens the staging directory at path, and creates and marks it if that
// was not done yet. It makes sure that nobody but the agent's user can look into
// it or change it: it will hold secrets.
func openOwn(path string) (*os.Root, error) {
	if err := Check(path); err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	root, err := ownOf(info).Open(path)
	if err != nil {
		return nil, err
	}
	info, err = root.Stat(".")
	if err == nil && info.Mode().Perm() != 0o700 {
		err = root.Chmod(".", 0o700)
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// MountOf returns the mount point that path is on, or would be on if it existed.
// It is "/" as well where the kernel does not tell.
func MountOf(path string) string {
	for rest := ""; ; path, rest = filepath.Dir(path), filepath.Join(filepath.Base(path), rest) {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = filepath.Join(real, rest)
			break
		}
		if path == "/" {
			break
		}
	}
	for ; path != "/"; path = filepath.Dir(path) {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
		if err == nil && st.Attributes&st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			break
		}
	}
	return path
}

// CheckMounted reports that nothing is mounted at mount any more, the mount point
// that path was on before: what is written to path now would lie on another file
// system, where its secrets may not belong, and go out of sight with the next
// mount.
func CheckMounted(path, mount string) error {
	now := MountOf(path)
	if mount == now || !strings.HasPrefix(mount, strings.TrimSuffix(now, "/")+"/") {
		return nil
	}
	return fmt.Errorf("staging.dir %s was on the file system mounted at %s, which is not mounted any more: mount it again, or restart the agent to go on without it", path, mount)
}
