package compose

import (
	"context"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/compose/v2/pkg/api"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// Former returns the release that the database says served before.
func (b *backend) Former(ctx context.Context) (deploy.Former, error) {
	prev := b.job.Previous
	if prev != nil && !same(*prev, b.job.Release) {
		return deploy.Former{Way: deploy.BringBack, Version: prev.Version}, nil
	}
	if !b.applied { // perhaps nothing was begun
		list, err := b.list(ctx, task.PhaseRestoring)
		if err != nil {
			return deploy.Former{}, err
		}
		if len(list) == 0 {
			return deploy.Former{Serves: &deploy.Serves{}}, nil
		}
	}
	switch {
	case prev != nil:
		return deploy.Former{Text: "; it is the release that served before, so there is nothing else to restore"}, nil
	case b.first:
		return deploy.Former{Way: deploy.RemoveAll}, nil
	default:
		return deploy.Former{Text: " and was left as it is: the database names no release that served before"}, nil
	}
}

// Restore brings the previous release up again, with the images that ran.
func (b *backend) Restore(ctx context.Context, _ deploy.Former) (deploy.Applied, error) {
	prev := *b.job.Previous
	b.attempted = nil
	b.report.Event(task.PhaseRestoring, "restoring release %s", prev.Version)
	p, err := b.prepare(ctx, prev, b.previousEnv, b.previousEnvErr)
	if err != nil {
		return deploy.Applied{}, err
	}
	b.engine.creates.settle(ctx)
	b.restoreTags(ctx, p.project)
	if err := b.retryUnavailable(ctx, task.PhaseRestoring, func() error { return b.ensureImages(ctx, p, true) }); err != nil {
		return deploy.Applied{}, err
	}
	if err := b.layOut(ctx, p); err != nil {
		return deploy.Applied{}, err
	}
	return deploy.Applied{Changed: true}, b.up(ctx, p, false)
}

// Remove removes containers, networks and the files of the release, but neither
// volumes nor what containers wrote.
func (b *backend) Remove(ctx context.Context) error {
	b.engine.creates.settle(ctx)
	err := b.retryUnavailable(ctx, task.PhaseRestoring, func() error {
		return b.engine.compose.Down(ctx, b.job.Compose.Project, api.DownOptions{RemoveOrphans: true})
	})
	if err != nil {
		return err
	}
	lay, err := b.store.layOut(b.job.Compose.Project, "", b.job.Release.Version, layout{}, b.report.Note)
	if err != nil {
		return err
	}
	defer lay.close()
	return lay.run()
}

// restoreTags gives the images that ran before their references back, which the failed
// release may have moved by pulling: it is the image that is restored, not its name.
func (b *backend) restoreTags(ctx context.Context, p *types.Project) {
	err := b.retryUnavailable(ctx, task.PhaseRestoring, func() error {
		for _, s := range p.Services {
			ref := api.GetImageNameOrDefault(s, p.Name)
			id := b.formerImages[ref]
			if id == "" || strings.Contains(ref, "@") { // a digest does not move
				continue
			}
			now, err := b.engine.api.ImageInspect(ctx, ref)
			if isConnError(err) {
				return err
			}
			if err == nil && now.ID == id {
				continue
			}
			if err := b.engine.api.ImageTag(ctx, id, ref); err != nil {
				if isConnError(err) {
					return err
				}
				b.report.Note("image %s, which ran before as %s, is gone: %s", id, ref, b.report.Line(err.Error()))
				continue
			}
			b.report.Note("image %s is %s again, as before", id, ref)
		}
		return nil
	})
	if err != nil {
		b.report.Note("%s", b.report.Line(err.Error())) // what comes next says it again
	}
}
