package compose

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// errNoDir is a path that leads over something else than directories.
var errNoDir = errors.New("it is not a directory")

// dir opens the directory p, nil where there is none. It follows no link: whoever
// writes into a project directory may have put one there.
func (l *laying) dir(p string) (*os.Root, error) {
	start, rest := l.top, p
	if instead := l.instead[topOf(p)]; instead != nil {
		start, rest = instead, strings.TrimPrefix(strings.TrimPrefix(p, topOf(p)), "/")
	}
	if start == nil {
		return nil, nil
	}
	root, err := start.OpenRoot(".")
	if err != nil || rest == "." || rest == "" {
		return root, err
	}
	for name := range strings.SplitSeq(rest, "/") {
		next, err := openBelow(root, name)
		_ = root.Close() // nothing was written through it
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoDir) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		root = next
	}
	return root, nil
}

// openBelow opens the directory name, which is no link, in root.
func openBelow(root *os.Root, name string) (*os.Root, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, errNoDir
	}
	dir, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	now, err := dir.Stat(".")
	if err == nil && !os.SameFile(info, now) {
		err = errNoDir
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

// look returns what lies at p, nil for nothing.
func (l *laying) look(p string) (*entry, error) {
	dir, name, err := l.parent(p)
	if dir == nil {
		return nil, err
	}
	defer dir.Close()
	e, err := lookAt(dir, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, fs.ErrPermission) && e.Type == typeFile:
		e.SHA256 = "not readable" // so that it was changed
		return &e, nil
	case err != nil:
		return nil, l.failed("look at", p, err)
	}
	return &e, nil
}

// parent opens the directory that p lies in, nil where there is none, and returns
// p's name in it.
func (l *laying) parent(p string) (*os.Root, string, error) {
	if l.instead[p] != nil {
		dir, err := l.dir(p)
		return dir, ".", err
	}
	dir, err := l.dir(path.Dir(p))
	if err != nil {
		return nil, "", l.failed("open the directory of", p, err)
	}
	return dir, path.Base(p), nil
}

// place returns p as people have to look for it.
func (l *laying) place(p string) string {
	return filepath.Join(l.s.projectPath(l.project), p)
}
