package compose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// up brings d up as `docker compose up -d --remove-orphans` does, and waits
// until all of it is up. A container that cannot come up ends it at once, also
// while the library still waits for a dependency. first is true when the project
// had no containers.
func (r *run) up(ctx context.Context, d *desired, first bool) error {
	var w *watch
	err := r.persist(ctx, task.PhaseApplying, func() (err error) {
		if w, err = r.newWatch(ctx, d.project); err != nil {
			return err
		}
		return r.revive(ctx, d, w)
	})
	if err != nil {
		return err
	}

	if err := fault.Point("compose.up.create:" + d.release.Version); err != nil {
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
	err = r.persist(upCtx, task.PhaseApplying, func() error {
		// The library changes the project while it works on it.
		p := d.project.WithServicesDisabled()
		label(p, r.job, d.release, first)
		return r.engine.compose.Up(upCtx, p, api.UpOptions{
			Create: api.CreateOptions{
				Services:             p.ServiceNames(),
				RemoveOrphans:        true,
				Recreate:             api.RecreateDiverged,
				RecreateDependencies: api.RecreateDiverged,
				Inherit:              true,
				QuietPull:            true,
			},
			Start: api.StartOptions{Project: p, Services: p.ServiceNames()},
		})
	})
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
		return r.blame(ctx, w, err)
	}
	r.rename(ctx, d.project.Name)
	if err := fault.Point("compose.up.started:" + d.release.Version); err != nil {
		cancel(err)
		<-watched
		return err
	}
	r.emit(task.PhaseWaiting, fmt.Sprintf("waiting until %s up", are(len(d.project.Services), "service")))
	close(started)
	return <-watched
}

// revive restarts containers that are unhealthy while others of d wait for their
// health. The library fails at once when a dependency is unhealthy, but waits for
// one that was just started. Containers that d replaces are not worth it.
func (r *run) revive(ctx context.Context, d *desired, w *watch) error {
	awaited := map[string]bool{}
	for _, s := range d.project.Services {
		for name, dep := range s.DependsOn {
			awaited[name] = awaited[name] || dep.Condition == types.ServiceConditionHealthy
		}
	}
	if !slices.ContainsFunc(slices.Collect(maps.Values(w.before)), func(p past) bool { return p.sick && awaited[p.service] }) {
		return nil
	}
	list, err := r.engine.list(ctx, d.project.Name)
	if err != nil {
		return err
	}
	hashes, err := configHashes(d.project, byService(list))
	if err != nil {
		return err
	}
	for _, c := range list {
		old := w.before[c.ID]
		if !old.sick || !awaited[old.service] || c.Labels[api.ConfigHashLabel] != hashes[old.service] {
			continue
		}
		r.emit(task.PhaseApplying, fmt.Sprintf("restarting container %s: it is unhealthy, and other services wait for its health", nameOf(c)))
		if err := r.engine.api.ContainerRestart(ctx, c.ID, container.StopOptions{}); err != nil {
			note(r.out, "container %s could not be restarted: %s", nameOf(c), r.line(err.Error())) // the library says what comes of it
		}
	}
	return nil
}

// rename gives containers the names that a process which died while it replaced
// others could not give them any more.
func (r *run) rename(ctx context.Context, project string) {
	list, err := r.engine.list(ctx, project)
	if err != nil {
		note(r.out, "%v", err) // the names are for people only
		return
	}
	for _, c := range list {
		if isReplacement(c) {
			_, name, _ := strings.Cut(nameOf(c), "_")
			if err := r.engine.api.ContainerRename(ctx, c.ID, name); err != nil {
				note(r.out, "container %s keeps its name: %s", nameOf(c), r.line(err.Error()))
			}
		}
	}
}

// blame finds the container behind an error of the library, which speaks of
// dependencies and container names; the error itself when there is none.
func (r *run) blame(ctx context.Context, w *watch, err error) error {
	verdicts, lookErr := w.look(ctx)
	if lookErr != nil {
		return err
	}
	for _, v := range verdicts {
		if _, old := w.before[v.id]; (v.standing == failed || v.crashed) && !old {
			return &failure{v}
		}
	}
	return err
}

// are returns n with its noun and verb.
func are(n int, noun string) string {
	if n == 1 {
		return "1 " + noun + " is"
	}
	return count(n, noun) + " are"
}
