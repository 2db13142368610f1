package compose

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// changeSlack is how much later than the copy a file may seem to be changed:
// file systems keep coarser time than the clock.
const changeSlack = 2 * time.Second

// CleanUp notes what serves now, for people and for a rollback while the database
// is away, and removes old bundles.
func (b *backend) CleanUp(ctx context.Context, restored bool) {
	serving := b.attempted
	if err := b.store.setCurrent(serving.bundle); err != nil {
		b.report.Note("%v", err) // the link is for people only
	}
	if !restored {
		if err := b.store.appendHistory(b.historyEntry(serving.release)); err != nil {
			b.report.Note("%v; a rollback while the database is away will not know of release %s", err, serving.release.Version)
		}
	}
	needed := []string{serving.bundle}
	if b.job.Previous != nil {
		needed = append(needed, b.job.Previous.Bundle())
	}
	if target := b.rollbackTarget(); target != "" {
		needed = append(needed, target)
	}
	b.removeBundles(ctx, b.job.Compose.Keep, needed...)
	b.removeBuilt(ctx)
}

// rollbackTarget returns the bundle that a rollback without the database would go back
// to, "" for none.
func (b *backend) rollbackTarget() string {
	history, err := protocol.ReadHistory(b.store.dir)
	if err != nil {
		return ""
	}
	i := protocol.RollbackTarget(history, protocol.HistoryEntry.Bundle,
		func(e protocol.HistoryEntry) bool { return e.Kind == task.KindRollback },
		func(e protocol.HistoryEntry) bool { return b.store.has(e.Bundle()) })
	if i < 0 {
		return ""
	}
	return history[i].Bundle()
}

// removeBundles removes bundles but the last keep ones and those that needed holds.
// No container mounts them. With the former layout it is different: removeFormer.
func (b *backend) removeBundles(ctx context.Context, keep int, needed ...string) {
	for _, old := range b.store.listIn(protocol.BundlesDir) {
		switch {
		case slices.Contains(needed, old.name):
			continue
		case keep > 0:
			keep--
			continue
		}
		if err := b.store.remove(old.name); err != nil {
			b.report.Note("the old bundle %s stays: %v", old.name, err)
			continue
		}
		b.report.Note("removed the old bundle %s", old.name)
	}
	used, err := b.engine.referred(ctx, filepath.Join(b.store.dir, protocol.FormerDir))
	if err != nil {
		b.report.Note("old bundles stay for now: %v", err)
		return
	}
	b.removeFormer(used, keep, needed)
}

// referred returns the bundles below dir that containers work in or mount
// files of: of every project, since two may share a working directory.
func (e *engine) referred(ctx context.Context, dir string) (map[string]bool, error) {
	all, err := e.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	all = e.own.localPaths(all)
	used := map[string]bool{}
	add := func(path string) {
		rel, err := filepath.Rel(dir, path)
		if err == nil && filepath.IsLocal(rel) {
			name, _, _ := strings.Cut(rel, "/")
			used[name] = true
		}
	}
	for _, c := range all {
		add(c.Labels[api.WorkingDirLabel])
		for _, m := range c.Mounts {
			add(m.Source)
		}
	}
	return used, nil
}

type bundle struct {
	name string
	kept time.Time
}

// listIn returns the bundles kept in dir of the working directory, the newest first;
// none where there is no such directory.
func (s *store) listIn(dir string) []bundle {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil {
		return nil
	}
	var kept []bundle
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b := bundle{name: e.Name()}
		if info, err := s.root.Lstat(path.Join(dir, keptPrefix+b.name)); err == nil {
			b.kept = info.ModTime()
		} else if info, err := e.Info(); err == nil {
			b.kept = info.ModTime()
		}
		kept = append(kept, b)
	}
	slices.SortFunc(kept, func(a, b bundle) int { return b.kept.Compare(a.kept) })
	return kept
}

// changedIn returns a path in b, a bundle in dir, that was written to after b was
// kept, or "". What cannot be looked at counts as changed.
func (s *store) changedIn(dir string, b bundle) string {
	found := ""
	err := fs.WalkDir(s.root.FS(), path.Join(dir, b.name), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			found = path
			return fs.SkipAll
		}
		info, err := d.Info()
		if err != nil || info.ModTime().After(b.kept.Add(changeSlack)) {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return b.name
	}
	return found
}

// remove removes a kept bundle.
func (s *store) remove(name string) error { return s.removeIn(protocol.BundlesDir, name) }

// removeIn removes the bundle name in dir. It takes the name away first: a
// half-removed one must not look complete.
func (s *store) removeIn(dir, name string) error {
	root, err := s.root.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	temp := tempPrefix + name + "-" + rand.Text()[:8]
	if err := durable.Rename(root, name, root, temp); err != nil {
		return err
	}
	if err := root.RemoveAll(temp); err != nil {
		return err
	}
	return root.RemoveAll(keptPrefix + name)
}
