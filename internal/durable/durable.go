// Package durable changes files so that a power loss leaves either the state
// before or the state after, and so that what a function reported as done stays
// done: data is flushed before it gets its name, and every directory whose
// entries changed is flushed before the function returns.
//
// All names are relative to an [os.Root] and cannot leave it. Each step is
// announced to package fault with a label of the form
//
//	durable.OPERATION.STEP:DIR/NAME
//
// where DIR is the base name of the root's own path. After an error the change
// may or may not have happened; it is never half visible.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/shred"
)

// WriteFile makes data the content of the file name, replacing a file that is
// there. The mode is exactly perm, whatever the umask. A crash may leave a file
// behind whose name [IsTemp] knows, in the same directory. Content that is
// replaced is unlinked, not shredded; what was written before an error may be a
// secret, and is shredded.
func WriteFile(root *os.Root, name string, data []byte, perm fs.FileMode) error {
	if err := writeFile(root, name, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", shown(root, name), err)
	}
	return nil
}

const tempPrefix, tempSuffix = ".new-", ".tmp"

// IsTemp reports whether base, a name without directory, is that of a file
// which an interrupted [WriteFile] left behind. Nobody needs it any more.
func IsTemp(base string) bool {
	return strings.HasPrefix(base, tempPrefix) && strings.HasSuffix(base, tempSuffix)
}

func writeFile(root *os.Root, name string, data []byte, perm fs.FileMode) (err error) {
	label := ":" + shown(root, name)
	dir := path.Dir(name)
	temp := path.Join(dir, tempPrefix+rand.Text()+tempSuffix)

	if err := fault.Point("durable.writefile.create" + label); err != nil {
		return err
	}
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	named := false
	defer func() {
		_ = f.Close() // a second close after the one below does no harm
		if err != nil && !named {
			err = errors.Join(err, giveUp(root, temp))
		}
	}()

	if err := f.Chmod(perm); err != nil {
		return err
	}
	if err := fault.Point("durable.writefile.write" + label); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := fault.Step("durable.writefile.sync"+label, f.Sync); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := fault.Step("durable.writefile.rename"+label, func() error { return root.Rename(temp, name) }); err != nil {
		return err
	}
	named = true
	return fault.Step("durable.writefile.syncdir"+label, func() error { return syncDir(root, dir) })
}

// giveUp shreds a file that is not to be, or, on a disk that takes no write any
// more, unlinks it: nobody would find it again.
func giveUp(root *os.Root, temp string) error {
	err := shred.File(root, temp)
	if err == nil {
		return nil
	}
	if gone := root.Remove(temp); !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// Rename moves oldname in from to newname in to; both are single components,
// and both roots are on one file system. It replaces an existing file or empty
// directory of the same type; a directory that is not empty is an error
// (ENOTEMPTY or EEXIST).
func Rename(from *os.Root, oldname string, to *os.Root, newname string) error {
	if err := rename(from, oldname, to, newname); err != nil {
		return fmt.Errorf("rename %s to %s: %w", shown(from, oldname), shown(to, newname), err)
	}
	return nil
}

func rename(from *os.Root, oldname string, to *os.Root, newname string) error {
	for _, name := range []string{oldname, newname} {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("name %q is not a single component: %w", name, fs.ErrInvalid)
		}
	}
	label := ":" + shown(from, oldname) + ">" + shown(to, newname)

	// os.Root renames within one root only.
	source, err := from.Open(".")
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := to.Open(".")
	if err != nil {
		return err
	}
	defer target.Close()

	if err := fault.Step("durable.rename.rename"+label, func() error {
		return unix.Renameat(int(source.Fd()), oldname, int(target.Fd()), newname)
	}); err != nil {
		return err
	}
	// The target first: were the source's removal alone to reach the disk, the
	// directory would be in neither place.
	if err := fault.Step("durable.rename.synctarget"+label, target.Sync); err != nil {
		return err
	}
	return fault.Step("durable.rename.syncsource"+label, source.Sync)
}

// Mkdir creates the directory name with exactly the mode perm, whatever the
// umask. An existing name is an error that wraps [fs.ErrExist].
func Mkdir(root *os.Root, name string, perm fs.FileMode) error {
	if err := mkdir(root, name, perm); err != nil {
		return fmt.Errorf("create directory %s: %w", shown(root, name), err)
	}
	return nil
}

func mkdir(root *os.Root, name string, perm fs.FileMode) error {
	label := ":" + shown(root, name)
	if err := fault.Step("durable.mkdir.mkdir"+label, func() error { return root.Mkdir(name, perm) }); err != nil {
		return err
	}
	if err := root.Chmod(name, perm); err != nil {
		return err
	}
	return fault.Step("durable.mkdir.syncdir"+label, func() error { return syncDir(root, path.Dir(name)) })
}

// Remove removes the file, symbolic link or empty directory name. A missing
// name is an error that wraps [fs.ErrNotExist].
func Remove(root *os.Root, name string) error {
	if err := remove(root, name); err != nil {
		return fmt.Errorf("remove %s: %w", shown(root, name), err)
	}
	return nil
}

func remove(root *os.Root, name string) error {
	label := ":" + shown(root, name)
	if err := fault.Step("durable.remove.remove"+label, func() error { return root.Remove(name) }); err != nil {
		return err
	}
	return fault.Step("durable.remove.syncdir"+label, func() error { return syncDir(root, path.Dir(name)) })
}

// shown returns name as labels and errors have it: below the last component of
// the root's path, which says which of several roots is meant.
func shown(root *os.Root, name string) string {
	return filepath.Base(root.Name()) + "/" + name
}
