package compose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/consts"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// load reads the bundle kept at dir as the project name, seeing nothing of the
// world but what it says itself and the row's env. It returns the project as the CLI
// would hand it to the library, labels apart. hostFile says which files outside of the
// bundle may be read.
func load(ctx context.Context, dir, name string, row rowEnv, hostFile hostFile) (*types.Project, sources, error) {
	src, _, err := scanBundle(dir, row, hostFile)
	if err != nil {
		return nil, src, err
	}
	p, err := loadSources(ctx, dir, name, src)
	return p, src, err
}

func loadSources(ctx context.Context, dir, name string, src sources) (*types.Project, error) {
	env := src.env
	var files []string
	for _, file := range src.files {
		files = append(files, filepath.Join(dir, file))
	}
	var profiles []string
	for _, p := range strings.Split(env.values[consts.ComposeProfiles], ",") {
		profiles = append(profiles, strings.TrimSpace(p))
	}
	environment := maps.Clone(env.values) // the loader adds the project's name
	if _, ok := environment["PWD"]; !ok {
		environment["PWD"] = filepath.Join(dir, src.base) // as the shell has it where docker compose is run
	}
	details := types.ConfigDetails{
		WorkingDir:  filepath.Join(dir, src.projectDir),
		ConfigFiles: types.ToConfigFiles(files),
		Environment: environment,
	}
	p, err := loader.LoadWithContext(ctx, details, func(o *loader.Options) {
		o.SetProjectName(name, true)
		o.ResolvePaths = true
		o.SkipResolveEnvironment = true // it would look for .env on disk
		o.Profiles = profiles
	})
	if err != nil {
		return nil, fmt.Errorf("load the Compose file: %s", deploy.OneLine(strings.ReplaceAll(err.Error(), dir+"/", "")))
	}
	p.ComposeFiles = files
	if len(p.Services) == 0 {
		return nil, errors.New("load the Compose file: it has no service to start (are all of them in profiles that COMPOSE_PROFILES does not name?)")
	}
	if err := resolveServices(p, dir, src); err != nil {
		return nil, err
	}
	if err := validate(p, env); err != nil {
		return nil, err
	}
	if err := checkBuilds(p, dir); err != nil {
		return nil, err
	}
	return p.WithoutUnnecessaryResources(), nil
}

// validate names what a release may not ask for.
func validate(p *types.Project, env rowEnv) error {
	for _, name := range p.ServiceNames() {
		if p.Services[name].Provider != nil {
			return fmt.Errorf("service %q has a provider, which would run a program of this host: releases run containers only", name)
		}
	}
	// The row's env is not in the bundle: the engine would make a directory of it.
	for _, name := range p.ServiceNames() {
		for _, v := range p.Services[name].Volumes {
			if env.given && v.Type == types.VolumeTypeBind && filepath.Clean(v.Source) == filepath.Join(p.WorkingDir, envFile) {
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
