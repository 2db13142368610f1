package helm

import (
	"context"
	"errors"
	"fmt"

	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// backend is one Helm release, for one job.
type backend struct {
	job     *protocol.Job
	report  *deploy.Report
	cluster *cluster

	values    map[string]any // of the row
	valuesErr error

	before history          // what Observe found; nil once that was uninstalled
	target *release.Release // the revision that a rollback goes back to, nil for none

	prepared  *step            // has passed the preflight and waits for approval, nil for none
	cleared   bool             // something that an earlier deployment left was cleared away
	notUndone []string         // what of it stays, and why
	failed    *release.Release // the revision that gives way to the former one, nil for none
	why       string           // what the record of a failed revision says
	restoring bool             // Restore was called
}

// New is the deploy.Factory of Helm releases.
func New(job *protocol.Job, report *deploy.Report) (deploy.Backend, error) {
	if err := checkSettings(job.Helm); err != nil {
		return nil, err
	}
	b := &backend{job: job, report: report, why: "its process is gone"}
	b.values, b.valuesErr = readValues(job.Release.ValuesFile)
	report.Common(job.Helm.Release, job.Helm.Namespace)
	report.Learn(secretsOfValues(b.values))
	return b, nil
}

// checkSettings refuses settings that nothing can be deployed with.
func checkSettings(h *protocol.Helm) error {
	switch {
	case h == nil:
		return errors.New("the job names no Helm release")
	case chartutil.ValidateReleaseName(h.Release) != nil:
		return fmt.Errorf("helm.release_name %q: it may hold lower-case letters, digits and -, at most 53 of them", h.Release)
	case h.Namespace == "":
		return errors.New("kube.namespace is not set")
	}
	return nil
}

// Names returns the words of Helm.
func (b *backend) Names() deploy.Names {
	return deploy.Names{Place: "the cluster", Removed: "it was removed"}
}

// Close ends a step that waits for approval in vain.
func (b *backend) Close() { b.abandon() }

func (b *backend) abandon() {
	if b.prepared != nil {
		b.prepared.kill(context.Canceled)
		b.prepared.run(context.Background())
		b.prepared = nil
	}
}

// run carries out a command that needs no approval, in a child process, until
// that ends, or ctx does, which kills it.
func (b *backend) run(ctx context.Context, c command) outcome {
	s, err := b.start(ctx, c)
	if err != nil {
		return outcome{err: err}
	}
	s.run(ctx)
	return s.outcome
}

// asRevision is how "release 2.0 is up" goes on.
func asRevision(revision int) string { return fmt.Sprintf(" as revision %d", revision) }
