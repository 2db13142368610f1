package maintenance

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// flagState is what stands at the flag file's path. nginx's -f follows symbolic
// links and wants a regular file.
type flagState int

const (
	flagAbsent  flagState = iota
	flagOurs              // the very file that a record tells of, untouched
	flagForeign           // any other regular file
)

// lookAtFlag says what stands at path; r is the agent's record, nil for none.
// Something that nginx does not take for the flag, and that is in its way, is an
// error.
func lookAtFlag(path string, r *record) (flagState, error) {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return flagAbsent, nil
	case err != nil:
		return flagAbsent, fmt.Errorf("look at flag file: %w", err)
	case fi.Mode().IsRegular():
		if r != nil && fi.ModTime().Equal(r.FlagTime) && holds(path, r.Content) {
			return flagOurs, nil
		}
		return flagForeign, nil
	}
	if target, err := os.Stat(path); err == nil && target.Mode().IsRegular() {
		return flagForeign, nil
	}
	return flagAbsent, fmt.Errorf("look at flag file: %s is in the way (%s), and is not followed or replaced: remove it", path, fi.Mode().Type())
}

// holds reports whether path is a regular file with exactly this content. What
// cannot be read is not what the agent wrote.
func holds(path, content string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() || fi.Size() != int64(len(content)) {
		return false
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(len(content))+1))
	return err == nil && string(b) == content
}

// createFlag creates the flag file, complete with content and time, in one step
// that replaces and follows nothing: the default directory is one that anybody
// may write to. An operator's flag that came first is left as it is.
func createFlag(path string, r *record) (err error) {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("create flag file: %w: create the directory, or change maintenance.flag_file", err)
	}
	defer dir.Close()
	defer func() {
		if err != nil {
			err = fmt.Errorf("create flag file %s: %w", path, err)
		}
	}()
	temp := flagTemp(path, r)
	if err := dir.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := fault.Point("maintenance.flag.create:" + path); err != nil {
		return err
	}
	f, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(r.Content)
	// Others than the agent's user must see it, whatever the umask. It is flushed
	// before it gets its name: after a power loss, a flag with another content or
	// time would pass for an operator's.
	err = errors.Join(err, f.Chmod(0o644), dir.Chtimes(temp, r.FlagTime, r.FlagTime), f.Sync(), f.Close())
	if err == nil {
		err = fault.Point("maintenance.flag.rename:" + path)
	}
	if err == nil {
		err = dir.Link(temp, filepath.Base(path))
	}
	if rerr := dir.Remove(temp); err == nil {
		err = rerr
	}
	if errors.Is(err, fs.ErrExist) {
		_, err = lookAtFlag(path, r) // an operator was faster, or something is in the way
	}
	return err
}

// flagTemp is where the flag file is made ready. The random part of its content
// keeps others from being there first.
func flagTemp(path string, r *record) string {
	var nonce string
	_, _ = fmt.Sscanf(r.Content, "wrktalk-agent %s", &nonce)
	return "." + filepath.Base(path) + "-" + nonce
}

// removeFlag removes the flag file if it is the one r tells of, and flushes the
// directory: the record goes next, and a flag that came back without one would
// pass for an operator's. It reports whether an operator's flag stays.
func removeFlag(path string, r *record) (kept bool, err error) {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove flag file: %w", err)
	}
	defer dir.Close()
	if err := dir.Remove(flagTemp(path, r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("remove what was to become the flag file: %w", err)
	}
	state, err := lookAtFlag(path, r)
	if err != nil {
		return false, nil //nolint:nilerr // not ours, and nothing that nginx takes for the flag
	}
	if state != flagOurs {
		return state == flagForeign, nil
	}
	if err := fault.Point("maintenance.flag.remove:" + path); err != nil {
		return false, fmt.Errorf("remove flag file %s: %w", path, err)
	}
	if err := dir.Remove(filepath.Base(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("remove flag file: %w", err)
	}
	return false, durable.SyncDir(dir, ".")
}
