package compose

import (
	"context"
	"fmt"
	"slices"

	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Observe takes the lock of the working directory, waits for an engine that is
// away, and looks at the project's containers.
func (b *backend) Observe(ctx context.Context) (o deploy.Observation, err error) {
	if b.store, err = openStore(ctx, b.job.Compose.WorkingDir); err != nil {
		return o, err
	}
	if b.engine, err = connect(ctx, b.report.Log(), b.onUnavailable(task.PhasePreflight)); err != nil {
		return o, err
	}
	b.job.Policy.OwnOutside = b.self().ownPaths(b.job.Policy.Own)
	if err := b.admit(ctx, task.PhasePreflight); err != nil {
		return o, err
	}
	list, err := b.list(ctx, task.PhasePreflight)
	if err != nil {
		return o, err
	}
	b.formerImages = b.imageIDs(ctx, list)
	// What an earlier attempt of this task left of a first installation is one still.
	b.first = !slices.ContainsFunc(list, b.isForeign)
	o.State = b.state(ctx, list)
	o.Leftover = "an earlier attempt"
	return o, nil
}

// state returns how things stand. Compose keeps no record of what it does. So a
// job to recover takes the release to be half applied unless all of it is there.
func (b *backend) state(ctx context.Context, list []container.Summary) deploy.State {
	recovering := b.job.Action == protocol.ActionRecover
	switch {
	case recovering || slices.ContainsFunc(list, b.sameTask):
		err := b.prepareRelease(ctx)
		if err == nil {
			err = b.retryUnavailable(ctx, task.PhasePreflight, func() error { return b.inPlace(ctx, b.release, !recovering) })
		}
		if err == nil {
			return deploy.StateApplied
		}
		if recovering {
			b.report.Note("release %s is not up: %v", b.job.Release.Version, err)
		}
		return deploy.StateInterrupted
	case len(list) == 0:
		return deploy.StateAbsent
	default:
		return deploy.StateServing
	}
}

// list returns the project's containers, waiting for an engine that is away.
func (b *backend) list(ctx context.Context, p task.Phase) (list []container.Summary, err error) {
	err = b.retryUnavailable(ctx, p, func() (err error) {
		list, err = b.engine.list(ctx, b.job.Compose.Project)
		return err
	})
	return list, err
}

// inPlace returns nil when applying p would find nothing to do: every service has
// its containers, started, with the wanted configuration and image, and there are
// no others. With running, none of them may have ended: applying it would start
// those again.
func (b *backend) inPlace(ctx context.Context, p *prepared, running bool) error {
	list, err := b.engine.list(ctx, p.project.Name)
	if err != nil {
		return err
	}
	have := byService(list)
	for name := range have {
		if _, ok := p.project.Services[name]; !ok {
			return fmt.Errorf("service %q is not part of it but has a container", name)
		}
	}
	hashes, err := configHashes(p.project, have)
	if err != nil {
		return err
	}
	for name, s := range p.project.Services {
		if n, want := len(have[name]), s.GetScale(); n != want {
			return fmt.Errorf("service %q has %s of %d", name, deploy.Count(n, "container"), want)
		}
		ref := api.GetImageNameOrDefault(s, p.project.Name)
		image, err := b.engine.api.ImageInspect(ctx, ref)
		if err != nil {
			return fmt.Errorf("look for image %s: %w", ref, err)
		}
		for _, c := range have[name] {
			switch {
			case c.Labels[api.ConfigHashLabel] != hashes[name], c.Labels[api.ImageDigestLabel] != image.ID:
				return fmt.Errorf("a container of service %q is of another release", name)
			case c.State == container.StateCreated:
				return fmt.Errorf("a container of service %q was never started", name)
			case running && c.State != container.StateRunning:
				return fmt.Errorf("a container of service %q does not run", name)
			case isReplacement(c):
				return fmt.Errorf("a container of service %q was to replace another one", name)
			}
		}
	}
	return nil
}
