package compose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

// findFiles returns the project directory of a bundle and its Compose file: at
// the bundle's root, or in its only first-level directory. Both are relative to
// dir. An override file beside it is not used, as it never was where docker
// compose was given its file by name: it is there for developers.
func findFiles(dir *os.Root) (projectDir string, files []string, err error) {
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return "", nil, fmt.Errorf("list the release: %w", err)
	}
	var names, dirs []string
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() {
			dirs = append(dirs, name)
			name += "/"
		}
		names = append(names, name)
	}
	candidates := []string{"."}
	if len(dirs) == 1 {
		candidates = append(candidates, dirs[0])
	}
	for _, d := range candidates {
		main := firstFile(dir, d, cli.DefaultFileNames)
		if main == "" {
			continue
		}
		return d, []string{main}, nil
	}
	found := "it is empty"
	if len(names) > 0 {
		const most = 10
		if len(names) > most {
			names = append(names[:most], "…")
		}
		found = "it holds " + strings.Join(names, ", ")
	}
	return "", nil, fmt.Errorf("find the Compose file: neither the release's root nor its only directory has a %s; %s",
		strings.Join(cli.DefaultFileNames, ", "), found)
}

// overrideFile returns the name of an override file that the bundle at dir has, or "".
func overrideFile(dir string) string {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return ""
	}
	defer root.Close()
	sub, _, err := findFiles(root)
	if err != nil {
		return ""
	}
	return firstFile(root, sub, cli.DefaultOverrideFileNames)
}

func firstFile(dir *os.Root, sub string, names []string) string {
	for _, n := range names {
		path := filepath.Join(sub, n)
		if info, err := dir.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

// load reads the bundle kept at dir as the project name, seeing nothing of the
// world but env. It returns the project as the CLI would hand it to the library,
// labels apart.
func load(ctx context.Context, dir, name string, env rowEnv) (*types.Project, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the bundle: %w", err)
	}
	defer root.Close()
	sub, files, err := findFiles(root)
	if err != nil {
		return nil, err
	}
	projectDir := filepath.Join(dir, sub)
	for i, f := range files {
		files[i] = filepath.Join(dir, f)
	}
	if _, err := scanBundle(dir, projectDir, files, env.values); err != nil {
		return nil, err
	}

	var profiles []string
	for _, p := range strings.Split(env.values["COMPOSE_PROFILES"], ",") {
		profiles = append(profiles, strings.TrimSpace(p))
	}
	details := types.ConfigDetails{
		WorkingDir:  projectDir,
		ConfigFiles: types.ToConfigFiles(files),
		Environment: maps.Clone(env.values), // the loader adds the project's name
	}
	p, err := loader.LoadWithContext(ctx, details, func(o *loader.Options) {
		o.SetProjectName(name, true)
		o.ResolvePaths = true
		o.SkipResolveEnvironment = true // it would look for .env on disk
		o.Profiles = profiles
	})
	if err != nil {
		return nil, fmt.Errorf("load the Compose file: %s", oneLine(strings.ReplaceAll(err.Error(), dir+"/", "")))
	}
	p.ComposeFiles = files
	if len(p.Services) == 0 {
		return nil, errors.New("load the Compose file: it has no service to start (are all of them in profiles that COMPOSE_PROFILES does not name?)")
	}
	if err := resolveServices(p, dir, env); err != nil {
		return nil, err
	}
	if err := refuse(p); err != nil {
		return nil, err
	}
	return p.WithoutUnnecessaryResources(), nil
}

// refuse names what a release may not ask for.
func refuse(p *types.Project) error {
	for _, name := range p.ServiceNames() {
		if p.Services[name].Provider != nil {
			return fmt.Errorf("service %q has a provider, which would run a program of this host: releases run containers only", name)
		}
	}
	// The row's env is not in the bundle: the engine would make a directory of it.
	env := filepath.Join(p.WorkingDir, ".env")
	for _, name := range p.ServiceNames() {
		for _, v := range p.Services[name].Volumes {
			if v.Type == types.VolumeTypeBind && filepath.Clean(v.Source) == env {
				return fmt.Errorf("service %q mounts .env, which comes from the database and is not on this host: use env_file, or a secret with environment", name)
			}
		}
	}
	if len(p.Models) > 0 {
		return fmt.Errorf("the release uses models (%s), which would run a plugin of this host: releases run containers only",
			strings.Join(slices.Sorted(maps.Keys(p.Models)), ", "))
	}
	return nil
}

// fleeting returns the writable bind mounts, as service:path, whose sources
// lie in the bundle at dir but are not part of it: the engine will create them,
// and the next release starts without what was written there.
func fleeting(p *types.Project, dir string) []string {
	var found []string
	for _, name := range p.ServiceNames() {
		for _, v := range p.Services[name].Volumes {
			if v.Type != types.VolumeTypeBind || v.ReadOnly {
				continue
			}
			rel, err := filepath.Rel(filepath.Dir(dir), v.Source)
			if err != nil || !filepath.IsLocal(rel) {
				continue
			}
			if _, err := os.Lstat(v.Source); errors.Is(err, fs.ErrNotExist) {
				found = append(found, name+":"+v.Target)
			}
		}
	}
	return found
}
