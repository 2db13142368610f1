package compose

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/consts"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Preflight keeps the bundle, reads it, and fetches the images.
func (b *backend) Preflight(ctx context.Context) error {
	if err := b.checkEnvNames(); err != nil {
		return err
	}
	if err := b.prepareRelease(ctx); err != nil {
		return err
	}
	if err := b.checkPolicy(b.release); err != nil {
		return err
	}
	if err := b.checkLayout(ctx); err != nil {
		return err
	}
	b.warnNoRollback()
	return b.retryUnavailable(ctx, task.PhasePreflight, func() error {
		if err := b.ensureImages(ctx, b.release, false); err != nil {
			return err
		}
		return b.checkEngine(ctx, b.release)
	})
}

// prepareRelease prepares the job's release, once.
func (b *backend) prepareRelease(ctx context.Context) (err error) {
	if b.release == nil {
		b.release, err = b.prepare(ctx, b.job.Release, b.env, b.envErr)
	}
	return err
}

// prepared is a release ready to be brought up.
type prepared struct {
	release protocol.Release
	bundle  string         // its name in the store
	created bool           // the bundle was kept just now
	layout  layout         // where its files go in the project directory
	project *types.Project // as it is once they are laid out there, with the paths that the engine knows
	local   *types.Project // the same with the paths of this process
	secrets types.Secrets  // with the files of the bundle, for what is built from it
	remarks []string       // what docker compose would have done otherwise, a clause each
}

// remarks returns what docker compose would do otherwise with a bundle.
func (b *backend) remarks(dir string, src sources) (list []string) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil // it was just read
	}
	defer root.Close()
	if override := src.override(root); override != "" {
		list = append(list, fmt.Sprintf("%s is not used, since it is there for developers: name it in COMPOSE_FILE to use it", override))
	}
	if name := src.env.values[consts.ComposeProjectName]; name != "" && name != b.job.Compose.Project {
		list = append(list, fmt.Sprintf("%s is not used: the project is called %s, as compose.project_name says", consts.ComposeProjectName, b.job.Compose.Project))
	}
	return list
}

// detail is how "release 2.0 is up" goes on.
func (p *prepared) detail() string {
	text := ": " + deploy.Count(len(p.project.Services), "service")
	for _, remark := range p.remarks {
		text += "; " + remark
	}
	return text
}

// prepare keeps and loads a release. It changes nothing that runs. On an error a
// bundle it had just kept is gone again.
func (b *backend) prepare(ctx context.Context, rel protocol.Release, env rowEnv, envErr error) (_ *prepared, err error) {
	if envErr != nil {
		return nil, envErr
	}
	p := &prepared{release: rel}
	var ignored bool
	if p.bundle, p.created, ignored, err = b.store.keep(ctx, rel, env); err != nil {
		return nil, err
	}
	if ignored {
		b.report.Note("the .env inside release %s is ignored: its env comes from the database", rel.Version)
	}
	defer func() {
		if err != nil && p.created {
			if removeErr := b.store.remove(p.bundle); removeErr != nil {
				b.report.Note("the bundle of the refused release stays: %v", removeErr)
			}
		}
	}()
	dir := b.store.path(p.bundle)
	if !p.created {
		if err = b.checkIntegrity(p, env); err != nil {
			return nil, err
		}
	}
	var src sources
	if p.project, src, err = load(ctx, dir, b.job.Compose.Project, env, b.hostFiles(rel)); err != nil {
		return nil, err
	}
	if !env.given {
		b.report.Learn(src.env.values)
	}
	p.remarks = b.remarks(dir, src)
	for _, text := range p.remarks {
		b.report.Note("release %s: %s", rel.Version, text)
	}
	learnSecrets(b.report, p.project)
	if err = b.leaveOwn(p); err != nil {
		return nil, err
	}
	if err = b.labelContents(p.project, dir); err != nil {
		return nil, err
	}
	sub, err := filepath.Rel(dir, p.project.WorkingDir)
	if err != nil {
		return nil, err
	}
	p.layout = layout{filepath.ToSlash(sub)}
	p.secrets = maps.Clone(p.project.Secrets)
	to := b.store.projectPath(b.job.Compose.Project)
	p.local = p.project.WithServicesDisabled() // a copy
	relocate(p.local, dir, p.layout, to)
	to, _ = b.self().outside(to)
	relocate(p.project, dir, p.layout, to)
	return p, nil
}

// checkIntegrity makes sure that a bundle kept earlier is still the release it is
// named after. To bring back what served before, a changed one is better than
// nothing.
func (b *backend) checkIntegrity(p *prepared, env rowEnv) error {
	if p.release.PayloadDir != "" {
		changed, err := b.store.repair(p.bundle, p.release, env)
		if len(changed) > 0 {
			b.report.Note("WARNING: %s of the kept release %s had been changed on this host: put back as the release has it", strings.Join(changed, ", "), p.release.Version)
		}
		return err
	}
	changed, err := b.store.modifiedFiles(p.bundle, env)
	if err != nil || len(changed) == 0 {
		return err
	}
	text := fmt.Sprintf("%s of the kept release %s was changed on this host after it was kept", strings.Join(changed, ", "), p.release.Version)
	if same(p.release, b.job.Release) {
		return fmt.Errorf("%s: move %s away, and deploy the release from the database", text, b.store.path(p.bundle))
	}
	b.report.Note("WARNING: %s; it is used all the same", text)
	return nil
}

// warnNoRollback says beforehand when a failure could not be undone.
func (b *backend) warnNoRollback() {
	prev := b.job.Previous
	if prev == nil || same(*prev, b.job.Release) || prev.PayloadDir != "" || b.store.has(prev.Bundle()) {
		return
	}
	b.report.Event(task.PhasePreflight, "release %s is no longer kept: if release %s fails, it cannot be restored", prev.Version, b.job.Release.Version)
}
