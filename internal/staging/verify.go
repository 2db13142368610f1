package staging

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// verify compares what lies in root with m: every listed entry is there with
// its type, size, mode, digest and owner, and of the entries
// that may hold secrets there is none that is not listed. It returns the first
// difference.
func verify(root *os.Root, m *Manifest) error {
	listed := make(map[string]bool, len(m.Files))
	for _, f := range m.Files {
		listed[f.Path] = true
		if err := verifyFile(root, f); err != nil {
			return fmt.Errorf("staged %q: %w", f.Path, err)
		}
	}
	for _, top := range secrets {
		err := fs.WalkDir(root.FS(), top, func(name string, _ fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist) && name == top:
				return fs.SkipDir
			case err != nil:
				return err
			case !listed[name]:
				return fmt.Errorf("staged %q: is not in the manifest", name)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func verifyFile(root *os.Root, f File) error {
	info, err := root.Lstat(f.Path)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		switch {
		case f.Owner == nil && int(st.Uid) != os.Geteuid():
			return fmt.Errorf("belongs to user %d, not to the agent's user %d", st.Uid, os.Geteuid())
		case f.Owner != nil && (int(st.Uid) != f.Owner.UID || int(st.Gid) != f.Owner.GID):
			return fmt.Errorf("belongs to user %d and group %d, not to %d and %d", st.Uid, st.Gid, f.Owner.UID, f.Owner.GID)
		}
	}
	switch f.Type {
	case TypeDir:
		if !info.IsDir() {
			return errors.New("is not a directory any more")
		}
	case TypeSymlink:
		target, err := root.Readlink(f.Path)
		if err != nil {
			return err
		}
		if target != f.Target {
			return fmt.Errorf("points to %q, not to %q", target, f.Target)
		}
		return nil
	case TypeFile:
		if !info.Mode().IsRegular() {
			return errors.New("is not a regular file any more")
		}
		if info.Size() != f.Size {
			return fmt.Errorf("has %d bytes, not %d", info.Size(), f.Size)
		}
		sum, err := digest(root, f.Path)
		if err != nil {
			return err
		}
		if !strings.EqualFold(sum, f.SHA256) {
			return fmt.Errorf("has digest %s, not %s", sum, f.SHA256)
		}
	default:
		return fmt.Errorf("has the unknown type %q", f.Type)
	}
	if got := info.Mode().Perm(); got != f.Mode.Perm() {
		return fmt.Errorf("has mode %04o, not %04o", got, f.Mode.Perm())
	}
	return nil
}

func digest(root *os.Root, name string) (string, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
