package helm

import (
	"context"
	"fmt"
	"maps"
	"time"

	"helm.sh/helm/v3/pkg/action"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// rollback goes back to a revision, as `helm rollback --wait` does.
func (e *executor) rollback(ctx context.Context) error {
	h, revision := e.command.Job.Helm, e.command.Revision
	if e.command.AwaitApproval {
		if err := e.checkRollback(ctx); err != nil {
			return err
		}
		e.conn.requestApproval()
		e.report.Event(task.PhaseApplying, "rolling back to revision %d", revision)
	}
	past, err := e.cluster.readHistory(h.Release)
	if err != nil {
		return err
	}
	e.client.leftovers = e.leftovers(past, past.last())
	e.client.afterFailure = e.command.Action == actionRestore || !succeeded(past.last())
	target, err := e.cluster.releases.Get(h.Release, revision)
	if err != nil {
		return fmt.Errorf("read revision %d: %s", revision, deploy.OneLine(err.Error()))
	}
	labels := taskLabels(e.command.Job, e.command.Action)
	if !byAgent(target) { // what Helm copied into its labels may tell of another revision
		maps.Copy(labels, releaseLabels(protocol.Release{Version: past.releaseVersion(target, e.command.Job)}))
		for _, name := range []string{labelArtifact, labelDigest} {
			labels[name] = past.originLabel(target, name)
		}
	}
	b := action.NewRollback(e.configuration(labels))
	b.Version = revision
	b.Wait, b.Timeout = true, time.Until(e.command.Until)
	if e.command.Action != actionRestore { // which may have to be tried again, to the same revision
		b.MaxHistory = h.HistoryMax
	}
	return b.Run(h.Release)
}
