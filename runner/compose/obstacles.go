package compose

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
)

// check returns why the release cannot be laid out over what is there: something
// that is not the agent's, and that it cannot put aside, is in the way.
func (l *laying) check() error {
	for _, p := range l.paths() {
		have, act, _, err := l.decide(p)
		if err == nil && act == actClear {
			err = l.inTheWay(p, *have, l.want[p])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// inTheWay refuses to remove have, which is no directory where one is wanted or is
// one where none is, if it is not the agent's.
func (l *laying) inTheWay(p string, have, want entry) error {
	text := func(format string, args ...any) error {
		return fmt.Errorf("release %s has the %s %s, but in %s it is %s: move it away", l.version, want.Type, want.from,
			l.s.projectPath(l.project), fmt.Sprintf(format, args...))
	}
	if have.Type != typeDir {
		switch laid := l.laid(p, &have); {
		case laid != nil && have.holds(*laid):
			return nil
		case have.Type == typeLink:
			return text("a symbolic link to %s that no release laid there (mount what it leads to by an absolute path)", have.Target)
		default:
			return text("a %s that no release laid there", have.Type)
		}
	}
	found, err := l.foreign(p)
	if err != nil || found == "" {
		return err
	}
	return text("a directory in which somebody else wrote %s", found)
}

// foreign returns something in the directory p that the agent did not lay there, ""
// for nothing.
func (l *laying) foreign(p string) (string, error) {
	dir, err := l.dir(p)
	if dir == nil {
		return "", err
	}
	defer dir.Close()
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return "", l.failed("list", p, err)
	}
	left := map[string]bool{} // by an interrupted process
	for _, known := range l.paths() {
		if path.Dir(known) == p {
			left[tempName(path.Base(known))] = true
		}
	}
	for _, e := range entries {
		if left[e.Name()] {
			continue
		}
		below := path.Join(p, e.Name())
		have, err := l.look(below)
		if err != nil {
			return "", err
		}
		switch laid := l.laid(below, have); {
		case have == nil:
			continue
		case laid == nil || !have.holds(*laid):
			return below, nil
		case have.Type == typeDir:
			if found, err := l.foreign(below); found != "" || err != nil {
				return found, err
			}
		}
	}
	return "", nil
}

// checkSources refuses bind mounts of p that begin in the project directory and lead
// out of it over a link that is no release's: a container that may write there could
// have the next one mount anything of the host.
func (l *laying) checkSources(p *types.Project) error {
	for _, name := range p.ServiceNames() {
		for _, v := range p.Services[name].Volumes {
			rel, err := filepath.Rel(l.place("."), v.Source)
			if v.Type != types.VolumeTypeBind || err != nil || !filepath.IsLocal(rel) || rel == "." {
				continue
			}
			below := ""
			for part := range strings.SplitSeq(filepath.ToSlash(rel), "/") {
				below = path.Join(below, part)
				have, err := l.look(below)
				if err != nil {
					return err
				}
				if have == nil || have.Type != typeLink || entryAt(l.want, below) != nil || !l.leadsOut(below) {
					continue
				}
				return fmt.Errorf("service %q mounts %s, which is a symbolic link to %s that no release laid there, and leads out of the project's directory: remove it, or mount what it leads to by an absolute path", name, l.place(below), have.Target)
			}
		}
	}
	return nil
}

// leadsOut reports whether the link p leads out of the project's directory, or in a
// circle.
func (l *laying) leadsOut(p string) bool {
	top := topOf(p)
	dir, err := l.dir(top)
	if dir == nil || err != nil {
		return true
	}
	defer dir.Close()
	_, err = dir.Stat(strings.TrimPrefix(p, top+"/"))
	return err != nil && !errors.Is(err, fs.ErrNotExist)
}
