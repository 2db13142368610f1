package compose

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// afterFailure brings back what served before d, and returns the Result of the
// failed deployment. first is true when the project had no containers before.
func (r *run) afterFailure(ctx context.Context, d *desired, first bool, cause error) deployment.Result {
	ctx, cancel := r.restoreContext(ctx)
	defer cancel()
	sentence, tail := r.explain(ctx, d, cause)
	note(r.out, "%s", sentence)
	res := deployment.Result{Error: sentence, LogTail: tail, Touched: true}
	prev, failed := r.job.Previous, d.release.Version
	switch {
	case prev != nil && !same(*prev, d.release):
		r.restore(ctx, &res, fmt.Sprintf("release %s failed", failed))
	case prev != nil:
		res.Message = fmt.Sprintf("release %s failed; it is the release that served before, so there is nothing else to restore", failed)
	case first:
		r.removeFirst(ctx, &res, failed)
	default:
		res.Message = fmt.Sprintf("release %s failed and was left as it is: the database names no release that served before", failed)
	}
	return res
}

// restoreContext returns a context that outlives an interruption and a
// deadline, for as long as a restoration may take.
func (r *run) restoreContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), r.job.RestoreTimeout, errRestoreTimeout)
}

// restore makes the job's Previous serve again and completes res, whose message
// begins with what.
func (r *run) restore(ctx context.Context, res *deployment.Result, what string) {
	prev := *r.job.Previous
	r.emit(task.PhaseRestoring, fmt.Sprintf("restoring release %s", prev.Version))
	d, err := r.prepare(ctx, prev, r.previousEnv, r.previousEnvErr)
	if err == nil {
		r.retag(ctx, d.project)
		err = r.persist(ctx, task.PhaseRestoring, func() error { return r.ensureImages(ctx, d.project, true) })
	}
	if err == nil {
		err = r.up(ctx, d, false)
		if err != nil {
			sentence, tail := r.explain(context.WithoutCancel(ctx), d, err)
			err = errors.New(sentence)
			res.LogTail = append(res.LogTail, tail...)
		}
	}
	if err != nil {
		note(r.out, "restoring release %s failed: %v", prev.Version, err)
		res.Message = fmt.Sprintf("%s, and release %s could not be restored: nothing may serve now, look at the host", what, prev.Version)
		res.Error += fmt.Sprintf("; RESTORING release %s FAILED as well: %s", prev.Version, r.line(err.Error()))
		return
	}
	if err := r.store.setCurrent(d.bundle); err != nil {
		note(r.out, "%v", err) // the link is for people only
	}
	r.tidy(ctx, d.bundle)
	res.Restored, res.Serving = true, prev.Version
	res.Message = fmt.Sprintf("%s; release %s was restored and serves", what, prev.Version)
}

// retag gives the images that ran before their references back, which the failed
// release may have moved by pulling: it is the image that is restored, not its name.
func (r *run) retag(ctx context.Context, p *types.Project) {
	err := r.persist(ctx, task.PhaseRestoring, func() error {
		for _, s := range p.Services {
			ref := api.GetImageNameOrDefault(s, p.Name)
			id := r.tagged[ref]
			if id == "" || strings.Contains(ref, "@") { // a digest does not move
				continue
			}
			now, err := r.engine.api.ImageInspect(ctx, ref)
			if lost(err) {
				return err
			}
			if err == nil && now.ID == id {
				continue
			}
			if err := r.engine.api.ImageTag(ctx, id, ref); err != nil {
				if lost(err) {
					return err
				}
				note(r.out, "image %s, which ran before as %s, is gone: %s", id, ref, r.line(err.Error()))
				continue
			}
			note(r.out, "image %s is %s again, as before", id, ref)
		}
		return nil
	})
	if err != nil {
		note(r.out, "%s", r.line(err.Error())) // what comes next says it again
	}
}

// removeFirst removes a failed first installation: containers and networks,
// not volumes.
func (r *run) removeFirst(ctx context.Context, res *deployment.Result, failed string) {
	r.emit(task.PhaseRestoring, fmt.Sprintf("removing release %s: nothing served before", failed))
	err := r.persist(ctx, task.PhaseRestoring, func() error {
		return r.engine.compose.Down(ctx, r.job.Compose.Project, api.DownOptions{RemoveOrphans: true})
	})
	if err != nil {
		res.Message = fmt.Sprintf("release %s failed, and removing it failed as well: look at the host", failed)
		res.Error += "; removing it failed as well: " + r.line(err.Error())
		return
	}
	res.Message = fmt.Sprintf("release %s failed; the failed release was removed; nothing served before", failed)
}

// recover follows a process that died on the same job. A release that is all
// there is waited for; anything else gives way to what served before.
func (r *run) recover(ctx context.Context) deployment.Result {
	rel := r.job.Release
	d, err := r.prepare(ctx, rel, r.env, r.envErr)
	if err == nil {
		err = r.persist(ctx, task.PhasePreflight, func() error { return r.complete(ctx, d) })
	}
	if err == nil {
		err = r.await(ctx, d)
	}
	if err == nil {
		return r.succeeded(context.WithoutCancel(ctx), d)
	}
	note(r.out, "release %s is not up: %v", rel.Version, err)
	// Also when interrupted: half-way is the one state that must not stay.
	ctx = context.WithoutCancel(ctx)
	if err := r.gate(ctx); err != nil {
		return r.refused(err)
	}
	ctx, cancel := r.restoreContext(ctx)
	defer cancel()
	what := fmt.Sprintf("the deployment of release %s died half-way", rel.Version)
	res := deployment.Result{
		Error:   r.died(),
		Touched: true,
	}
	var list []container.Summary
	err = r.persist(ctx, task.PhaseRestoring, func() (err error) {
		list, err = r.engine.list(ctx, r.job.Compose.Project)
		return err
	})
	if r.job.Previous != nil && !same(*r.job.Previous, rel) {
		r.tagged = r.references(ctx, list)
		r.restore(ctx, &res, what)
		return res
	}
	switch {
	case err != nil:
		res.Message = what + ", and its containers cannot be listed: look at the host"
		res.Error += "; " + r.line(err.Error())
	case len(list) == 0:
		res.Message = what + "; nothing serves"
	case r.job.Previous == nil && !slices.ContainsFunc(list, r.notFirst):
		r.removeFirst(ctx, &res, rel.Version)
	case r.job.Previous == nil:
		res.Message = what + " and was left as it is: the database names no release that served before"
	default:
		res.Message = what + "; it is the release that served before, so there is nothing else to restore"
	}
	return res
}

// notFirst reports whether c was not made by this task as part of a first
// installation.
func (r *run) notFirst(c container.Summary) bool {
	return c.Labels[labelFirst] != "true" || c.Labels[LabelTask] != string(r.job.TaskID)
}

// await waits until d, whose containers are all there, is up.
func (r *run) await(ctx context.Context, d *desired) error {
	var w *watch
	err := r.persist(ctx, task.PhaseWaiting, func() (err error) {
		w, err = r.newWatch(ctx, d.project)
		return err
	})
	if err != nil {
		return err
	}
	r.emit(task.PhaseWaiting, fmt.Sprintf("release %s is in place; waiting until %s up", d.release.Version, are(len(d.project.Services), "service")))
	started := make(chan struct{})
	close(started)
	return w.wait(ctx, started)
}

// complete returns nil when an up of d would find nothing to do: every service
// has its containers, started, with the wanted configuration and image, and
// there are no others.
func (r *run) complete(ctx context.Context, d *desired) error {
	list, err := r.engine.list(ctx, d.project.Name)
	if err != nil {
		return err
	}
	have := byService(list)
	for name := range have {
		if _, ok := d.project.Services[name]; !ok {
			return fmt.Errorf("service %q is not part of it but has a container", name)
		}
	}
	hashes, err := configHashes(d.project, have)
	if err != nil {
		return err
	}
	for name, s := range d.project.Services {
		if n, want := len(have[name]), s.GetScale(); n != want {
			return fmt.Errorf("service %q has %s of %d", name, count(n, "container"), want)
		}
		ref := api.GetImageNameOrDefault(s, d.project.Name)
		image, err := r.engine.api.ImageInspect(ctx, ref)
		if err != nil {
			return fmt.Errorf("look for image %s: %w", ref, err)
		}
		for _, c := range have[name] {
			switch {
			case c.Labels[api.ConfigHashLabel] != hashes[name], c.Labels[api.ImageDigestLabel] != image.ID:
				return fmt.Errorf("a container of service %q is of another release", name)
			case c.State == container.StateCreated:
				return fmt.Errorf("a container of service %q was never started", name)
			case isReplacement(c):
				return fmt.Errorf("a container of service %q was to replace another one", name)
			}
		}
	}
	return nil
}
