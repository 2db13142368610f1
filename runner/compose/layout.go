package compose

import (
	"context"
	"os"
	"path/filepath"

	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// laying prepares to lay out p. With f, the directory of the former layout that is
// to become the project directory is looked at in its place.
func (b *backend) laying(p *prepared, f *former) (*laying, error) {
	lay, err := b.store.layOut(p.project.Name, p.bundle, p.release.Version, p.layout, b.report.Note)
	if err != nil || f == nil {
		return lay, err
	}
	lay.instead = map[string]*os.Root{}
	if lay.rec, err = b.store.formerRecord(f); err == nil {
		lay.instead[projectDir], err = b.store.root.OpenRoot(f.dir())
	}
	if err != nil {
		lay.close()
		return nil, err
	}
	return lay, nil
}

// checkLayout refuses a release whose files cannot be laid out over what is there. It
// keeps the release that serves by the former layout, while it is as it was.
func (b *backend) checkLayout(ctx context.Context) error {
	f, _, err := b.former(ctx, task.PhasePreflight)
	if err != nil {
		return err
	}
	if f != nil {
		if err := b.store.keepFormer(ctx, f, b.job.Previous, b.previousEnv); err != nil {
			return err
		}
	}
	lay, err := b.laying(b.release, f)
	if err != nil {
		return err
	}
	defer lay.close()
	if err := lay.check(); err != nil {
		return err
	}
	if err := b.checkVisible(b.release, lay); err != nil {
		return err
	}
	return lay.checkSources(b.release.local)
}

// layOut lays the files of p out in the project directory, which the former layout
// may have elsewhere.
func (b *backend) layOut(ctx context.Context, p *prepared) error {
	f, list, err := b.former(ctx, task.PhaseApplying)
	if err != nil {
		return err
	}
	if f != nil {
		if err := b.store.keepFormer(ctx, f, b.job.Previous, b.previousEnv); err != nil {
			return err
		}
		if err := b.store.adopt(p.project.Name, f, list); err != nil {
			return err
		}
		b.report.Note("%s is the project directory from now on: %s became it, with all that was written there", filepath.Join(b.store.projectPath(p.project.Name), projectDir), f.dir())
	}
	lay, err := b.laying(p, nil)
	if err != nil {
		return err
	}
	defer lay.close()
	if err := lay.run(); err != nil {
		return err
	}
	if err := b.admit(ctx, task.PhaseApplying); err != nil {
		return err
	}
	return lay.checkSources(p.local)
}

// former returns what is to go over from the former layout, nil for nothing, and the
// project's containers.
func (b *backend) former(ctx context.Context, phase task.Phase) (f *former, list []container.Summary, err error) {
	if info, err := b.store.root.Lstat(protocol.FormerDir); err != nil || !info.IsDir() {
		return nil, nil, nil
	}
	if list, err = b.list(ctx, phase); err != nil {
		return nil, nil, err
	}
	var used map[string]bool
	err = b.retryUnavailable(ctx, phase, func() (err error) {
		used, err = b.engine.referred(ctx, filepath.Join(b.store.dir, protocol.FormerDir))
		return err
	})
	if err == nil {
		f, err = b.store.findFormer(b.job.Compose.Project, list, used)
	}
	return f, list, err
}
