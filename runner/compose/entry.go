package compose

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// entryType is what an entry of a project directory is.
type entryType string

const (
	typeFile entryType = "file"
	typeDir  entryType = "dir"
	typeLink entryType = "symlink"
	typeElse entryType = "something else" // a socket, a device
)

// entry is a file, directory or link, as a release has it or as it is on the disk.
type entry struct {
	Type   entryType   `json:"type"`
	Mode   fs.FileMode `json:"mode,omitempty"` // permission bits, but of links
	UID    int         `json:"uid"`
	GID    int         `json:"gid"`
	SHA256 string      `json:"sha256,omitempty"` // of files
	Target string      `json:"target,omitempty"` // of links
	from   string      // the path in the bundle
}

// is reports whether two entries are the same, owner and mode included.
func (e entry) is(o entry) bool {
	e.from, o.from = "", ""
	return e == o
}

// holds reports whether two entries hold the same, whoever they belong to.
func (e entry) holds(o entry) bool {
	return e.Type == o.Type && e.SHA256 == o.SHA256 && e.Target == o.Target
}

// listBundle returns what the bundle kept under name lays out, by place.
func (s *store) listBundle(name string, l layout) (map[string]entry, error) {
	root, err := s.bundles.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	files := map[string]entry{}
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := l.place(p)
		if to == "" {
			return nil
		}
		e, err := lookAt(root, p)
		if err != nil {
			return err
		}
		if e.Type == typeLink {
			e.Target = l.target(p, e.Target)
		}
		e.from = p
		files[to] = e
		if topOf(to) == besideDir && path.Dir(to) == besideDir {
			files[besideDir] = entry{Type: typeDir, Mode: 0o755, UID: os.Geteuid(), GID: os.Getegid(), from: "."}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the kept bundle %s: %w", name, err)
	}
	return files, nil
}

// lookAt returns what lies at name in root, whose last component is not followed.
func lookAt(root *os.Root, name string) (entry, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return entry{}, err
	}
	e := entry{Mode: info.Mode().Perm(), UID: -1, GID: -1}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.UID, e.GID = int(st.Uid), int(st.Gid)
	}
	switch {
	case info.IsDir():
		e.Type = typeDir
	case info.Mode().IsRegular():
		e.Type = typeFile
		e.SHA256, err = digestOf(root, name)
	case info.Mode()&fs.ModeSymlink != 0:
		e.Type, e.Mode = typeLink, 0
		e.Target, err = root.Readlink(name)
	default:
		e.Type = typeElse
	}
	return e, err
}
