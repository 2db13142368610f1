package compose

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// Apply brings the release up, as Observe and Preflight have prepared it.
func (b *backend) Apply(ctx context.Context) (deploy.Applied, error) {
	b.applied = true
	b.report.Event(task.PhaseApplying, "bringing up release %s: %s", b.release.release.Version, deploy.Count(len(b.release.project.Services), "service"))
	applied := deploy.Applied{Changed: true, Detail: b.release.detail()}
	if err := b.layOut(ctx, b.release); err != nil {
		return applied, err
	}
	return applied, b.up(ctx, b.release, b.first)
}

// Confirm waits until the release, whose containers are all there, is up.
func (b *backend) Confirm(ctx context.Context) (deploy.Applied, error) {
	p := b.release
	b.applied, b.attempted = true, p
	services := len(p.project.Services)
	applied := deploy.Applied{Changed: true, Detail: p.detail()}
	if err := b.layOut(ctx, p); err != nil { // it is, unless somebody changed it meanwhile
		return applied, err
	}
	var w *watch
	err := b.retryUnavailable(ctx, task.PhaseWaiting, func() (err error) {
		w, err = b.newWatch(ctx, p.project)
		return err
	})
	if err != nil {
		return applied, err
	}
	b.report.Event(task.PhaseWaiting, "release %s is in place; waiting until %s up", p.release.Version, deploy.CountAre(services, "service"))
	started := make(chan struct{})
	close(started)
	return applied, w.wait(ctx, started)
}

// up brings p up as `docker compose up -d --remove-orphans` does, and waits
// until all of it is up. A container that cannot come up ends it at once, also
// while the library still waits for a dependency. first is true when the project
// had no containers.
func (b *backend) up(ctx context.Context, p *prepared, first bool) error {
	b.attempted = p
	var w *watch
	err := b.retryUnavailable(ctx, task.PhaseApplying, func() (err error) {
		if w, err = b.newWatch(ctx, p.project); err != nil {
			return err
		}
		return b.restartUnhealthyDependencies(ctx, p, w)
	})
	if err != nil {
		return err
	}

	if err := fault.Point("compose.up.create:" + p.release.Version); err != nil {
		return err
	}
	upCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	started, watched := make(chan struct{}), make(chan error, 1)
	go func() {
		err := w.wait(upCtx, started)
		if err != nil {
			cancel(err)
		}
		watched <- err
	}()
	for again := true; again; again = err != nil && b.awaitRestarted(upCtx, w, err) {
		err = b.retryUnavailable(upCtx, task.PhaseApplying, func() error {
			// The library changes the project while it works on it.
			project := p.project.WithServicesDisabled()
			label(project, *b.job, p.release, first)
			return b.engine.compose.Up(upCtx, project, api.UpOptions{
				Create: createOptions(project),
				Start:  api.StartOptions{Project: project, Services: project.ServiceNames()},
			})
		})
	}
	if err != nil {
		cancel(err)
		seen := <-watched
		var f *failure
		switch {
		case errors.As(seen, &f):
			return f
		case context.Cause(ctx) != nil:
			return context.Cause(ctx)
		}
		return b.failedContainer(ctx, w, err)
	}
	b.renameReplacements(ctx, p.project.Name)
	if err := fault.Point("compose.up.started:" + p.release.Version); err != nil {
		cancel(err)
		<-watched
		return err
	}
	b.report.Event(task.PhaseWaiting, "waiting until %s up", deploy.CountAre(len(p.project.Services), "service"))
	close(started)
	return <-watched
}

// awaitRestarted reports whether the library is to be asked again after its error: it
// takes a dependency for unhealthy while that is between two runs, which its restart
// policy may yet bring up. So it is waited for until it is up, or has failed.
func (b *backend) awaitRestarted(ctx context.Context, w *watch, err error) bool {
	if !strings.Contains(err.Error(), "is unhealthy") {
		return false
	}
	own := w.beside()
	for {
		if retry.Sleep(ctx, 5*lookAgain); ctx.Err() != nil {
			return false
		}
		containers, err := own.look(ctx)
		if err != nil {
			return false
		}
		restarted, pending := false, false
		for _, c := range containers {
			if _, old := w.before[c.id]; old {
				continue
			}
			if c.state == stateFailed {
				return false
			}
			restarted = restarted || c.restarts > 0
			pending = pending || c.restarts > 0 && c.state == statePending
		}
		if !pending {
			return restarted
		}
	}
}

// createOptions are those of `docker compose up -d --remove-orphans`.
func createOptions(p *types.Project) api.CreateOptions {
	return api.CreateOptions{
		Services:             p.ServiceNames(),
		RemoveOrphans:        true,
		Recreate:             api.RecreateDiverged,
		RecreateDependencies: api.RecreateDiverged,
		Inherit:              true,
		QuietPull:            true,
	}
}

// restartUnhealthyDependencies restarts containers that are unhealthy while other
// services of p wait for their health. The library fails at once when a dependency
// is unhealthy, but waits for one that was just started. Containers that p replaces
// are left alone.
func (b *backend) restartUnhealthyDependencies(ctx context.Context, p *prepared, w *watch) error {
	awaited := map[string]bool{}
	for _, s := range p.project.Services {
		for name, dep := range s.DependsOn {
			awaited[name] = awaited[name] || dep.Condition == types.ServiceConditionHealthy
		}
	}
	if !slices.ContainsFunc(slices.Collect(maps.Values(w.before)), func(old past) bool { return old.unhealthy && awaited[old.service] }) {
		return nil
	}
	list, err := b.engine.list(ctx, p.project.Name)
	if err != nil {
		return err
	}
	hashes, err := configHashes(p.project, byService(list))
	if err != nil {
		return err
	}
	for _, c := range list {
		old := w.before[c.ID]
		if !old.unhealthy || !awaited[old.service] || c.Labels[api.ConfigHashLabel] != hashes[old.service] {
			continue
		}
		b.report.Event(task.PhaseApplying, "restarting container %s: it is unhealthy, and other services wait for its health", nameOf(c))
		if err := b.engine.api.ContainerRestart(ctx, c.ID, container.StopOptions{}); err != nil {
			b.report.Note("container %s could not be restarted: %s", nameOf(c), b.report.Line(err.Error())) // the library says what comes of it
		}
	}
	return nil
}

// renameReplacements gives containers the names that a process which died while it
// replaced others could not give them any more.
func (b *backend) renameReplacements(ctx context.Context, project string) {
	list, err := b.engine.list(ctx, project)
	if err != nil {
		b.report.Note("%v", err) // the names are for people only
		return
	}
	for _, c := range list {
		if isReplacement(c) {
			_, name, _ := strings.Cut(nameOf(c), "_")
			if err := b.engine.api.ContainerRename(ctx, c.ID, name); err != nil {
				b.report.Note("container %s keeps its name: %s", nameOf(c), b.report.Line(err.Error()))
			}
		}
	}
}

// lookAgain is the pause before a container is looked at again that ends and is
// restarted all the time.
const lookAgain = 100 * time.Millisecond

// failedContainer finds the container behind an error of the library, which speaks
// of dependencies and container names; the error itself when there is none. One
// that was restarted meanwhile is seen to fail only when it ends again.
func (b *backend) failedContainer(ctx context.Context, w *watch, err error) error {
	for end := w.now().Add(restartGrace); ; {
		containers, lookErr := w.look(ctx)
		if lookErr != nil {
			return err
		}
		restarted := false
		for _, c := range containers {
			if _, old := w.before[c.id]; old {
				continue
			}
			if c.state == stateFailed || c.restarting {
				return &failure{c}
			}
			restarted = restarted || c.state == statePending && c.restarts > 0
		}
		if !restarted || w.now().After(end) || ctx.Err() != nil {
			return err
		}
		retry.Sleep(ctx, lookAgain)
	}
}
