package compose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// The first version kept each release in a directory of its own below
// protocol.FormerDir, and its containers mounted files from there. What they wrote
// lies in the directory of the release that serves: at the next deployment that
// directory becomes the project directory. It is exchanged with a link to its new
// place in one step, so that containers which the engine restarts meanwhile find
// what they had.

// former is what the former layout left to go over.
type former struct {
	bundle string // the release that serves
	layout layout
}

// dir returns, below the working directory, what becomes the project directory.
func (f *former) dir() string { return path.Join(protocol.FormerDir, f.bundle, f.layout.sub) }

// formerBundle returns where the former layout keeps the bundle name, "" where it
// does not, or where that became a project directory.
func (s *store) formerBundle(name string) string {
	dir := filepath.Join(s.dir, protocol.FormerDir, name)
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return ""
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil && filepath.Base(target) == projectDir && filepath.Dir(filepath.Dir(target)) == filepath.Join(s.dir, projectsDir) {
			return ""
		}
	}
	return dir
}

// formerDigests returns the digests of the files of a bundle in the former layout,
// as the release had them; nil where they were not noted.
func (s *store) formerDigests(name string) map[string]string {
	data, err := s.root.ReadFile(path.Join(protocol.FormerDir, keptPrefix+name))
	if err != nil {
		return nil
	}
	var digests map[string]string
	if json.Unmarshal(data, &digests) != nil {
		return nil
	}
	return digests
}

// findFormer returns what is to go over, nil for nothing. List are the containers of
// the project, used what containers of the engine refer to in the former layout.
func (s *store) findFormer(project string, list []container.Summary, used map[string]bool) (*former, error) {
	if info, err := s.root.Lstat(path.Join(projectsDir, project, projectDir)); err == nil && info.IsDir() {
		return nil, nil
	}
	mounted, worked := map[string]bool{}, map[string]bool{}
	subs := map[string]string{}
	for _, c := range list {
		for _, m := range c.Mounts {
			if rel := s.inFormer(m.Source); rel != "" {
				mounted[topOf(rel)] = true
			}
		}
		if rel := s.inFormer(c.Labels[api.WorkingDirLabel]); rel != "" {
			worked[topOf(rel)] = true
			subs[topOf(rel)] = path.Clean(strings.TrimPrefix(strings.TrimPrefix(rel, topOf(rel)), "/"))
		}
	}
	current := ""
	if target, err := s.root.Readlink(currentLink); err == nil && path.Dir(target) == protocol.FormerDir {
		current = path.Base(target)
	}
	names := []string{current}
	for _, from := range []map[string]bool{mounted, worked} {
		for _, b := range s.listIn(protocol.FormerDir) { // the newest first
			if from[b.name] {
				names = append(names, b.name)
			}
		}
	}
	for _, name := range names {
		// Without containers of its own, the project may be another one than that of
		// the link.
		if name == "" || s.formerBundle(name) == "" || !mounted[name] && !worked[name] && (used[name] || len(mounted)+len(worked) > 0) {
			continue
		}
		sub, ok := subs[name]
		if !ok {
			root, err := s.root.OpenRoot(path.Join(protocol.FormerDir, name))
			if err != nil {
				return nil, fmt.Errorf("open the directory of the release that serves: %w", err)
			}
			defer root.Close()
			sub = "."
			if src, err := locate(root, rowEnv{given: true}); err == nil {
				sub = src.projectDir
			}
		}
		return &former{name, layout{sub}}, nil
	}
	return nil, nil
}

// inFormer returns dir relative to the directory of the former layout, "" where it is
// elsewhere.
func (s *store) inFormer(dir string) string {
	rel, err := filepath.Rel(filepath.Join(s.dir, protocol.FormerDir), dir)
	if err != nil || rel == "." || !filepath.IsLocal(rel) {
		return ""
	}
	return rel
}

// formerRecord returns what is known of the files of f.
func (s *store) formerRecord(f *former) (record, error) {
	r := record{Bundle: f.bundle, Files: map[string]entry{}, Former: f.dir()}
	root, err := s.root.OpenRoot(path.Join(protocol.FormerDir, f.bundle))
	if err != nil {
		return r, err
	}
	defer root.Close()
	for name, digest := range s.formerDigests(f.bundle) {
		for p := name; p != "."; p = path.Dir(p) {
			to := f.layout.place(p)
			e, err := lookAt(root, p)
			if err != nil || to == "" {
				continue // it is gone
			}
			switch e.Type {
			case typeFile:
				if p != name {
					continue
				}
				e.SHA256 = digest
			case typeLink:
				e.Target = f.layout.target(p, e.Target)
			case typeElse:
				continue
			}
			r.Files[to] = e
		}
	}
	return r, nil
}

// keepFormer keeps the bundle of f in the new layout as well, without what containers
// wrote, so that it can be restored.
func (s *store) keepFormer(ctx context.Context, f *former, previous *protocol.Release, env rowEnv) error {
	if s.has(f.bundle) {
		return nil
	}
	if previous != nil && previous.Bundle() == f.bundle {
		_, _, _, err := s.keep(ctx, *previous, env)
		return err
	}
	if _, err := s.copy(ctx, s.formerBundle(f.bundle), f.bundle, rowEnv{given: true}, s.formerDigests(f.bundle)); err != nil {
		return fmt.Errorf("keep the bundle of the release that serves: %w", err)
	}
	return nil
}

// bundleName is how the former layout called the directories of releases.
var bundleName = regexp.MustCompile(`-([0-9a-f]{12}|nodigest)$`)

// adopt makes the directory of f the project directory. Interrupted, it may be done
// again.
func (s *store) adopt(project string, f *former, list []container.Summary) error {
	if err := errors.Join(s.mkdirs(recordsDir), s.mkdirs(path.Join(projectsDir, project))); err != nil {
		return err
	}
	r, err := s.readRecord(project)
	if err != nil {
		return err
	}
	if r.Former != f.dir() { // otherwise an interrupted process has moved some of it
		if r, err = s.formerRecord(f); err == nil {
			err = s.writeRecord(project, r)
		}
		if err != nil {
			return err
		}
	}
	// What "../x" of a Compose file at the bundle's root was.
	for _, c := range list {
		for _, m := range c.Mounts {
			top := topOf(s.inFormer(m.Source))
			if _, err := s.root.Lstat(path.Join(protocol.FormerDir, keptPrefix+top)); top == "" || err == nil || bundleName.MatchString(top) {
				continue
			}
			if err := s.exchange(path.Join(protocol.FormerDir, top), path.Join(projectsDir, project, top)); err != nil {
				return err
			}
		}
	}
	if f.layout.sub != "." {
		entries, err := fs.ReadDir(s.root.FS(), path.Join(protocol.FormerDir, f.bundle))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Name() == topOf(f.layout.sub) {
				continue
			}
			if err := s.mkdirs(path.Join(projectsDir, project)); err != nil {
				return err
			}
			beside := path.Join(projectsDir, project, besideDir)
			if err := s.root.Mkdir(beside, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := s.exchange(path.Join(protocol.FormerDir, f.bundle, e.Name()), path.Join(beside, e.Name())); err != nil {
				return err
			}
		}
	}
	return s.exchange(f.dir(), path.Join(projectsDir, project, projectDir))
}

// exchange moves from to the place to, where nothing is yet, and leaves a link to it,
// in one step if the file system can do that. What is a link already stays.
func (s *store) exchange(from, to string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("move %s to %s: %w", filepath.Join(s.dir, from), filepath.Join(s.dir, to), err)
		}
	}()
	info, err := s.root.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	if err != nil {
		return err
	}
	switch there, err := s.root.Lstat(to); {
	case err == nil && there.Mode()&fs.ModeSymlink == 0:
		return fs.ErrExist
	case err == nil:
		if err := s.root.Remove(to); err != nil { // of an interrupted process
			return err
		}
	}
	link := filepath.Join(s.dir, to)
	if err := s.root.Symlink(link, to); err != nil {
		return err
	}
	old, err := s.root.Open(path.Dir(from))
	if err != nil {
		return err
	}
	defer old.Close()
	parent, err := s.root.Open(path.Dir(to))
	if err != nil {
		return err
	}
	defer parent.Close()
	err = fault.Step("compose.adopt.exchange:"+from, func() error {
		return unix.Renameat2(int(old.Fd()), path.Base(from), int(parent.Fd()), path.Base(to), unix.RENAME_EXCHANGE)
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTSUP) {
		// In two steps; record.Former tells the next process of the first one.
		if err = s.root.Remove(to); err == nil {
			err = unix.Renameat(int(old.Fd()), path.Base(from), int(parent.Fd()), path.Base(to))
		}
		if err == nil {
			err = fault.Step("compose.adopt.link:"+from, func() error { return s.root.Symlink(link, from) })
		}
	}
	return errors.Join(err, parent.Sync(), old.Sync())
}

// relink makes the link that an interrupted exchange left out.
func (s *store) relink(project string, r record) error {
	if r.Former == "" {
		return nil
	}
	to := path.Join(projectsDir, project, projectDir)
	if info, err := s.root.Lstat(to); err != nil || !info.IsDir() {
		return nil
	}
	if _, err := s.root.Lstat(r.Former); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := s.root.Lstat(path.Dir(r.Former)); err != nil {
		return nil // it was cleared away
	}
	return s.root.Symlink(filepath.Join(s.dir, to), r.Former)
}

// removeFormer removes what the former layout left, but for what containers of the
// engine refer to and what was written to since: that may be somebody's data. Keep
// tells how many unneeded bundles stay besides.
func (b *backend) removeFormer(used map[string]bool, keep int, needed []string) {
	s := b.store
	entries, err := fs.ReadDir(s.root.FS(), protocol.FormerDir)
	if err != nil {
		return // there is none
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 || used[e.Name()] {
			continue
		}
		name := path.Join(protocol.FormerDir, e.Name())
		if err := errors.Join(s.root.Remove(name), s.root.RemoveAll(path.Join(protocol.FormerDir, keptPrefix+e.Name()))); err != nil {
			b.report.Note("%s stays: %v", filepath.Join(s.dir, name), err)
		}
	}
	for _, old := range s.listIn(protocol.FormerDir) {
		switch {
		case used[old.name] || slices.Contains(needed, old.name) && !s.has(old.name):
			continue
		case keep > 0 && !s.has(old.name):
			keep--
			continue
		}
		name := path.Join(protocol.FormerDir, old.name)
		if changed := s.changedIn(protocol.FormerDir, old); changed != "" {
			b.report.Note("the old bundle %s stays: %s was written to after the release was kept; move it away or remove the bundle yourself", name, changed)
			continue
		}
		if err := s.removeIn(protocol.FormerDir, old.name); err != nil {
			b.report.Note("the old bundle %s stays: %v", name, err)
			continue
		}
		b.report.Note("removed the old bundle %s", name)
	}
}
