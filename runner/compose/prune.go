package compose

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
)

// changeSlack is how much later than the copy a file may seem to be changed:
// file systems keep coarser time than the clock.
const changeSlack = 2 * time.Second

// prune removes bundles but the last keep ones and those that needed holds. It
// spares what any container of the engine refers to, and what was written to
// since it was kept: that may be somebody's data.
func (r *run) prune(ctx context.Context, keep int, needed ...string) {
	used, err := r.engine.referred(ctx, r.store.dir)
	if err != nil {
		note(r.out, "old bundles stay for now: %v", err)
		return
	}
	kept, err := r.store.list()
	if err != nil {
		note(r.out, "old bundles stay for now: %v", err)
		return
	}
	for _, b := range kept {
		switch {
		case slices.Contains(needed, b.name) || used[b.name]:
			continue
		case keep > 0:
			keep--
			continue
		}
		if changed := r.store.changed(b); changed != "" {
			note(r.out, "the old bundle %s stays: %s was written to after the release was kept; move it away or remove the bundle yourself", b.name, changed)
			continue
		}
		if err := r.store.remove(b.name); err != nil {
			note(r.out, "the old bundle %s stays: %v", b.name, err)
			continue
		}
		note(r.out, "removed the old bundle %s", b.name)
	}
}

// referred returns the bundles below dir that containers work in or mount
// files of: of every project, since two may share a working directory.
func (e *engine) referred(ctx context.Context, dir string) (map[string]bool, error) {
	all, err := e.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
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

// list returns the kept bundles, the newest first.
func (s *store) list() ([]bundle, error) {
	entries, err := fs.ReadDir(s.releases.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list the bundles: %w", err)
	}
	var kept []bundle
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b := bundle{name: e.Name()}
		if info, err := s.releases.Lstat(keptPrefix + b.name); err == nil {
			b.kept = info.ModTime()
		} else if info, err := e.Info(); err == nil {
			b.kept = info.ModTime()
		}
		kept = append(kept, b)
	}
	slices.SortFunc(kept, func(a, b bundle) int { return b.kept.Compare(a.kept) })
	return kept, nil
}

// changed returns a path in b that was written to after b was kept, or "". What
// cannot be looked at counts as changed.
func (s *store) changed(b bundle) string {
	found := ""
	err := fs.WalkDir(s.releases.FS(), b.name, func(path string, d fs.DirEntry, err error) error {
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

// remove takes the bundle's name away first: a half-removed one must not look
// complete.
func (s *store) remove(name string) error {
	temp := tempPrefix + name + "-" + rand.Text()[:8]
	if err := durable.Rename(s.releases, name, s.releases, temp); err != nil {
		return err
	}
	if err := s.releases.RemoveAll(temp); err != nil {
		return err
	}
	return s.releases.RemoveAll(keptPrefix + name)
}
