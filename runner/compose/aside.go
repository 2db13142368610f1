package compose

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// olderMark is in the names of files that were put aside before another one of the
// same name.
const olderMark = ".~"

// asidePath returns where a file is put aside that was changed while bundle served.
func (l *laying) asidePath(bundle, p string) string {
	if bundle == "" {
		bundle = "none"
	}
	return path.Join(setAside, l.project, bundle, p)
}

// aside keeps what lies at name, which the agent did not lay there, outside of the
// project directory. A container that has it open goes on with it.
func (l *laying) aside(dir *os.Root, name, p string) error {
	to := l.asidePath(l.rec.Bundle, p)
	if err := l.s.mkdirs(path.Dir(to)); err != nil {
		return err
	}
	target, err := l.s.root.OpenRoot(path.Dir(to))
	if err != nil {
		return err
	}
	defer target.Close()
	if was, err := target.Lstat(path.Base(to)); err == nil {
		if now, err := dir.Lstat(name); err == nil && os.SameFile(was, now) {
			return nil // by an interrupted process
		}
		if err := durable.Rename(target, path.Base(to), target, path.Base(to)+olderMark+rand.Text()[:8]); err != nil {
			return err
		}
	}
	from, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer from.Close()
	into, err := target.Open(".")
	if err != nil {
		return err
	}
	defer into.Close()
	if err := fault.Step("compose.lay.aside:"+p, func() error {
		err := unix.Linkat(int(from.Fd()), name, int(into.Fd()), path.Base(to), 0)
		if err != nil { // the kernel may not let links be made to files of others
			err = unix.Renameat(int(from.Fd()), name, int(into.Fd()), path.Base(to))
		}
		return err
	}); err != nil {
		return err
	}
	l.note("WARNING: %s was not laid out by the agent, or was changed since: release %s replaces it, and what was there is now %s", l.place(p), l.version, filepath.Join(l.s.dir, to))
	return into.Sync()
}

// bringBack lays out, instead of the release's own, the file that was put aside when
// another release replaced it while this one served.
func (l *laying) bringBack(dir *os.Root, name, p string, want entryType) (bool, error) {
	from := l.asidePath(l.bundle, p)
	info, err := l.s.root.Lstat(from)
	if err != nil || want != typeFile || !info.Mode().IsRegular() {
		return false, nil
	}
	source, err := l.s.root.OpenRoot(path.Dir(from))
	if err != nil {
		return false, err
	}
	defer source.Close()
	if err := fault.Point("compose.lay.bringback:" + p); err != nil {
		return false, err
	}
	if err := durable.Rename(source, path.Base(from), dir, name); err != nil {
		return false, l.failed("bring back", p, err)
	}
	l.note("%s is again what it had become while release %s served", l.place(p), l.version)
	return true, nil
}

// bringBackOthers lays out what was put aside because another release had a file in
// its place which this one has not.
func (l *laying) bringBackOthers() error {
	if l.bundle == "" {
		return nil
	}
	top := l.asidePath(l.bundle, ".")
	return fs.WalkDir(l.s.root.FS(), top, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == top {
			return fs.SkipAll
		}
		if err != nil || !d.Type().IsRegular() || strings.Contains(d.Name(), olderMark) {
			return err
		}
		p := strings.TrimPrefix(name, top+"/")
		dir, base, err := l.parent(p)
		if dir == nil {
			return err
		}
		defer dir.Close()
		if _, err := dir.Lstat(base); entryAt(l.want, p) != nil || !errors.Is(err, fs.ErrNotExist) {
			return nil // something else is there now
		}
		l.touched[path.Dir(p)] = true
		_, err = l.bringBack(dir, base, p, typeFile)
		return err
	})
}
