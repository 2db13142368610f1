package compose

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// backend is one job on Docker Compose. A process runs one job: the Compose
// library keeps state in package variables.
type backend struct {
	job    *protocol.Job
	report *deploy.Report
	engine *engine
	store  *store

	env, previousEnv       rowEnv
	envErr, previousEnvErr error

	// What Observe found.
	first        bool              // nothing but what this task left of a first installation is there
	formerImages map[string]string // image references of what ran before, and the ids they stood for

	// renamed are the references that a built image got, and the ids they stood for
	// before, "" for none.
	renamed map[string]string

	release   *prepared // the job's
	attempted *prepared // what was brought up last
	watch     *watch    // of what was brought up last
	applied   bool      // Apply was called

	asked, remapped bool // whether the engine was asked whether users are remapped, and what it said

	closeLog func() // ends what the library says to the report
}

// New is the deploy.Factory of Docker Compose.
func New(job *protocol.Job, report *deploy.Report) (deploy.Backend, error) {
	if err := checkJob(job); err != nil {
		return nil, err
	}
	b := &backend{job: job, report: report}
	b.env, b.envErr = readEnv(job.Release.EnvFile)
	if job.Previous != nil {
		b.previousEnv, b.previousEnvErr = readEnv(job.Previous.EnvFile)
	}
	report.Learn(b.env.values, b.previousEnv.values)
	b.closeLog = libraryLog().direct(report.Log())
	return b, nil
}

// checkJob refuses settings that the backend cannot work with.
func checkJob(job *protocol.Job) error {
	c := job.Compose
	switch {
	case c == nil:
		return errors.New("the job names no Compose project")
	case c.Project == "" || loader.NormalizeProjectName(c.Project) != c.Project:
		return fmt.Errorf("compose project name %q: it may hold lower-case letters, digits, - and _, and starts with a letter or digit", c.Project)
	case !filepath.IsAbs(c.WorkingDir):
		return fmt.Errorf("compose.working_dir %q is not an absolute path", c.WorkingDir)
	}
	return nil
}

// Names returns the words of Docker Compose.
func (b *backend) Names() deploy.Names {
	return deploy.Names{Place: "the host", Removed: "the failed release was removed"}
}

// Close removes the bundle of a release that was refused, and lets go of the
// engine and of the working directory.
func (b *backend) Close() {
	if b.release != nil && b.release.created && !b.applied {
		if err := b.store.remove(b.release.bundle); err != nil {
			b.report.Note("the bundle of the refused release stays: %v", err)
		}
	}
	if b.engine != nil {
		b.engine.creates.settle(context.Background())
		if !b.applied {
			ctx, cancel := context.WithTimeout(context.Background(), removalTimeout)
			b.unname(ctx)
			cancel()
		}
		_ = b.engine.close() // nothing is left to be sent
	}
	b.closeLog()
	if b.store != nil {
		b.store.close()
	}
}

// onUnavailable returns what to do when the engine has to be waited for in phase
// p: people who follow the task are told why it does not get on.
func (b *backend) onUnavailable(p task.Phase) func(error) {
	return func(err error) {
		b.report.Note("%v; waiting for it", err)
		b.report.Event(p, "%v; waiting for it", err)
	}
}

// retryUnavailable does what again when the engine was away meanwhile; see
// engine.retryUnavailable.
func (b *backend) retryUnavailable(ctx context.Context, p task.Phase, what func() error) error {
	return b.engine.retryUnavailable(ctx, b.onUnavailable(p), what)
}

// same reports whether two releases are the same artifact.
func same(a, b protocol.Release) bool {
	if a.ArtifactID != "" || b.ArtifactID != "" {
		return a.ArtifactID == b.ArtifactID
	}
	return a.SHA256 == b.SHA256
}

// sameTask reports whether a container was made by the job's task.
func (b *backend) sameTask(c container.Summary) bool {
	return c.Labels[labelTask] == string(b.job.TaskID)
}

// isForeign reports whether c was not made by this task as part of a first
// installation.
func (b *backend) isForeign(c container.Summary) bool {
	return c.Labels[labelFirst] != "true" || !b.sameTask(c)
}
