package compose

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

const (
	recordsDir = "laid"      // PROJECT.json: what the agent laid out for the project
	setAside   = "replaced"  // PROJECT/BUNDLE/PATH: files that a release had to replace
	layPrefix  = ".wrktalk-" // of a file that is being laid out
)

// laying lays the files of one release out over those of another one.
type laying struct {
	s       *store
	project string
	bundle  string           // "" to remove all that was laid out
	version string           // for sentences
	want    map[string]entry // by place
	rec     record
	top     *os.Root            // projectsDir/PROJECT; nil before it is there
	instead map[string]*os.Root // what to take a first component for: a directory of the former layout
	note    func(format string, args ...any)
	touched map[string]bool // directories whose entries changed
}

// layOut prepares to lay out the bundle kept under name for the project, or to
// remove what was laid out when name is "". The caller closes it.
func (s *store) layOut(project, name, version string, l layout, note func(string, ...any)) (*laying, error) {
	lay := &laying{s: s, project: project, bundle: name, version: version, note: note, want: map[string]entry{}, touched: map[string]bool{}}
	var err error
	if name != "" {
		if lay.want, err = s.listBundle(name, l); err != nil {
			return nil, err
		}
	}
	if lay.rec, err = s.readRecord(project); err != nil {
		return nil, err
	}
	if err := s.relink(project, lay.rec); err != nil {
		return nil, err
	}
	projects, err := s.open(projectsDir)
	if err != nil {
		return nil, err
	}
	defer projects.Close()
	if lay.top, err = openBelow(projects, project); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the directory of project %s: %w", project, err)
	}
	return lay, nil
}

func (l *laying) close() {
	if l.top != nil {
		_ = l.top.Close() // nothing was written through it
	}
	for _, root := range l.instead {
		_ = root.Close()
	}
}

// paths returns all that the release has or the agent laid out, parents first.
func (l *laying) paths() []string {
	all := map[string]bool{}
	for _, files := range []map[string]entry{l.want, l.rec.Files, l.rec.Next} {
		for p := range files {
			all[p] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// entryAt returns what files has at p, nil for nothing.
func entryAt(files map[string]entry, p string) *entry {
	if e, ok := files[p]; ok {
		return &e
	}
	return nil
}

// laid returns what the agent laid at p, nil for nothing, where the disk has have. A
// process that was interrupted may have come to p or not.
func (l *laying) laid(p string, have *entry) *entry {
	former, next := entryAt(l.rec.Files, p), entryAt(l.rec.Next, p)
	switch {
	case next == nil || have == nil || former != nil && have.is(*former):
		return former
	case have.is(*next), former == nil && have.holds(*next):
		return next
	case former != nil && have.Type == typeDir && former.Type == typeDir && next.Type == typeDir &&
		(have.UID == former.UID || have.UID == next.UID) && (have.GID == former.GID || have.GID == next.GID) &&
		(have.Mode == former.Mode || have.Mode == next.Mode):
		return have // owner and mode of a directory are set one after the other
	default:
		return former
	}
}

// decide looks at p and returns what is to be done there.
func (l *laying) decide(p string) (have *entry, act action, keeps bool, err error) {
	if have, err = l.look(p); err != nil {
		return nil, actNothing, false, err
	}
	act, keeps = decide(have, entryAt(l.want, p), l.laid(p, have))
	return have, act, keeps, nil
}

// failed says what went wrong with p.
func (l *laying) failed(what, p string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		belongs := "it"
		if info, err := os.Lstat(filepath.Dir(l.place(p))); err == nil {
			belongs = fmt.Sprintf("its directory belongs to uid %d, and it", owner(info))
		}
		return fmt.Errorf("%s %s: %s may not be changed by the agent's uid %d: change the owner, or run the agent as root", what, l.place(p), belongs, os.Geteuid())
	}
	return fmt.Errorf("%s %s: %w", what, l.place(p), err)
}

// isDone reports whether there is nothing to do.
func (l *laying) isDone() (bool, error) {
	if l.rec.Bundle != l.bundle || l.rec.Laying != "" || l.top == nil && len(l.want) > 0 {
		return false, nil
	}
	for _, p := range l.paths() {
		if _, act, _, err := l.decide(p); act != actNothing || err != nil {
			return false, err
		}
	}
	return true, nil
}

// run lays the release out. Each file is replaced by a rename; what is as the
// release has it already, or was changed by others where the release changes
// nothing, is not touched. Interrupted at any moment, it may be run again, for this
// release or another one.
func (l *laying) run() error {
	if done, err := l.isDone(); done || err != nil {
		return err
	}
	if err := l.check(); err != nil {
		return err
	}
	if err := l.begin(); err != nil {
		return err
	}
	paths := l.paths()
	for _, p := range slices.Backward(paths) {
		if err := l.clear(p); err != nil {
			return err
		}
	}
	var src *os.Root
	if l.bundle != "" {
		var err error
		if src, err = l.s.bundles.OpenRoot(l.bundle); err != nil {
			return err
		}
		defer src.Close()
	}
	for _, p := range paths {
		if err := l.lay(src, p); err != nil {
			return err
		}
	}
	if err := l.bringBackOthers(); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	l.rec.Bundle, l.rec.Laying, l.rec.Files, l.rec.Next = l.bundle, "", l.want, nil
	return l.s.writeRecord(l.project, l.rec)
}

// begin notes what is about to be laid out, and makes the project's directory.
func (l *laying) begin() error {
	// What an interrupted process came to is laid out.
	files := map[string]entry{}
	for _, p := range l.paths() {
		if err := l.removeTemp(p); err != nil {
			return err
		}
		have, err := l.look(p)
		if err != nil {
			return err
		}
		if laid := l.laid(p, have); laid != nil {
			files[p] = *laid
		}
	}
	l.rec.Files, l.rec.Next, l.rec.Laying = files, l.want, l.bundle
	if l.bundle == "" {
		l.rec.Laying = "nothing"
	}
	if err := l.s.mkdirs(recordsDir); err != nil {
		return err
	}
	if err := l.s.writeRecord(l.project, l.rec); err != nil {
		return err
	}
	if l.top != nil {
		return nil
	}
	name := path.Join(projectsDir, l.project)
	if err := l.s.mkdirs(name); err != nil {
		return err
	}
	var err error
	l.top, err = l.s.root.OpenRoot(name)
	return err
}

// mkdirs makes the directory name of the working directory and those above it,
// durably, where they are missing.
func (s *store) mkdirs(name string) error {
	var made string
	for part := range strings.SplitSeq(name, "/") {
		made = path.Join(made, part)
		if err := durable.Mkdir(s.root, made, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// clear removes at p what the release lacks, or what has another type there.
func (l *laying) clear(p string) error {
	have, act, keeps, err := l.decide(p)
	if keeps && entryAt(l.want, p) == nil {
		l.note("%s, which release %s lacks, was changed since it was laid out: it stays", l.place(p), l.version)
	}
	if err != nil || act != actRemove && act != actClear {
		return err
	}
	dir, name, err := l.parent(p)
	if dir == nil {
		return err
	}
	defer dir.Close()
	if act == actClear {
		if err := l.inTheWay(p, *have, l.want[p]); err != nil {
			return err
		}
	}
	err = fault.Step("compose.lay.remove:"+p, func() error { return dir.Remove(name) })
	l.touched[path.Dir(p)] = true
	stays := errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY)
	if err == nil || errors.Is(err, fs.ErrNotExist) || act == actRemove && have.Type == typeDir && stays {
		return nil // what others wrote into a directory stays, and the directory with it
	}
	return l.failed("remove", p, err)
}

// tempName is how the file that is to become name is called until then: a name of
// its own for each, so that one that was left is found.
func tempName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return layPrefix + hex.EncodeToString(sum[:8])
}

// removeTemp removes what an interrupted process left beside p.
func (l *laying) removeTemp(p string) error {
	dir, name, err := l.parent(p)
	if dir == nil {
		return err
	}
	defer dir.Close()
	if err := dir.Remove(tempName(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return l.failed("remove what was left beside", p, err)
	}
	return nil
}

// lay makes p what the release has.
func (l *laying) lay(src *os.Root, p string) error {
	want := entryAt(l.want, p)
	if want == nil {
		return nil
	}
	have, act, keeps, err := l.decide(p)
	if err != nil {
		return err
	}
	if keeps {
		l.note("%s was changed since it was laid out, and release %s has it as before: the changed one stays", l.place(p), l.version)
	}
	switch act {
	case actNothing:
		return nil
	case actSet, actSetEmpty:
		return l.setDir(p, *have, *want, act == actSetEmpty)
	}
	dir, name, err := l.parent(p)
	if err != nil {
		return err
	}
	if dir == nil || act == actClear {
		return fmt.Errorf("lay out %s: somebody else changes %s at the same time", want.from, path.Dir(l.place(p)))
	}
	defer dir.Close()
	l.touched[path.Dir(p)] = true
	if act == actPutAside {
		if err := l.aside(dir, name, p); err != nil {
			return l.failed("put aside", p, err)
		}
	}
	if back, err := l.bringBack(dir, name, p, want.Type); back || err != nil {
		return err
	}
	if err := l.put(src, dir, name, p, *want); err != nil {
		return l.failed("lay out", p, err)
	}
	return nil
}

// setDir gives the directory p, which is there, the owner and mode the release has.
// With onlyEmpty, one that somebody works with as it is keeps its own.
func (l *laying) setDir(p string, have, want entry, onlyEmpty bool) error {
	dir, err := l.dir(p)
	if dir == nil {
		return err
	}
	defer dir.Close()
	if onlyEmpty {
		entries, err := fs.ReadDir(dir.FS(), ".")
		if err != nil || len(entries) > 0 || have.UID != os.Geteuid() {
			return nil
		}
	}
	if err := fault.Step("compose.lay.set:"+p, func() error { return giveDir(dir, ".", want) }); err != nil {
		return l.failed("set the mode of", p, err)
	}
	return nil
}

// giveDir gives a directory owner and mode.
func giveDir(dir *os.Root, name string, want entry) error {
	if os.Geteuid() == 0 {
		if err := dir.Chown(name, want.UID, want.GID); err != nil {
			return err
		}
	}
	if err := fault.Point("compose.lay.chmod:" + name); err != nil {
		return err
	}
	return dir.Chmod(name, want.Mode)
}

// put lays p out, by a rename over what is there.
func (l *laying) put(src, dir *os.Root, name, p string, want entry) error {
	temp := tempName(name)
	if err := fault.Point("compose.lay.create:" + p); err != nil {
		return err
	}
	var err error
	switch want.Type {
	case typeDir:
		if err = dir.Mkdir(temp, 0o700); err == nil {
			err = giveDir(dir, temp, want)
		}
	case typeLink:
		if err = dir.Symlink(want.Target, temp); err == nil && os.Geteuid() == 0 {
			err = dir.Lchown(temp, want.UID, want.GID)
		}
	default:
		err = copyOut(src, dir, temp, want)
	}
	if err == nil {
		err = fault.Step("compose.lay.rename:"+p, func() error { return dir.Rename(temp, name) })
	}
	if err != nil {
		_ = dir.Remove(temp) // the next one finds it otherwise
	}
	return err
}

// copyOut copies a file of a bundle to the new file temp, flushed.
func copyOut(src, dir *os.Root, temp string, want entry) error {
	in, err := src.Open(want.from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, sum), in)
	if err == nil && hex.EncodeToString(sum.Sum(nil)) != want.SHA256 {
		err = fmt.Errorf("%s in the kept bundle changed meanwhile", want.from)
	}
	if err == nil && os.Geteuid() == 0 {
		err = out.Chown(want.UID, want.GID)
	}
	if err == nil {
		err = errors.Join(out.Chmod(want.Mode), out.Sync())
	}
	return errors.Join(err, out.Close())
}

// sync flushes the directories whose entries changed.
func (l *laying) sync() error {
	for p := range l.touched {
		dir, err := l.dir(p)
		if err != nil {
			return err
		}
		if dir == nil {
			continue
		}
		f, err := dir.Open(".")
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err = errors.Join(err, dir.Close()); err != nil {
			return l.failed("flush", p, err)
		}
	}
	return nil
}
