package helm

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// plan is what the checks found out about an upgrade.
type plan struct {
	labels       map[string]string // of the new revision
	newNamespace bool              // it must be created
	newCRDs      bool              // an installation has to bring the chart's own kinds
}

// upgrade brings the job's release up, as `helm upgrade --install --wait
// --create-namespace` does. Until it is approved it changes nothing.
func (e *executor) upgrade(ctx context.Context) error {
	p, err := e.checkUpgrade(ctx)
	if err != nil {
		return err
	}
	// Rendering changed the chart and the values; the real run starts anew.
	values, ch, err := readRelease(e.command.Job.Release)
	if err != nil {
		return err
	}
	a := e.conn.requestApproval()
	e.report.Event(task.PhaseApplying, "applying chart %s-%s", ch.Name(), ch.Metadata.Version)
	install := e.runUpgrade
	if a.Install {
		install = e.runInstall
	} else if past, err := e.cluster.readHistory(e.command.Job.Helm.Release); err == nil { // Helm reads it as well, and has its say
		e.client.leftovers = e.leftovers(past, cmp.Or(past.serving(), past.last()))
		e.client.afterFailure = past.last() != nil && !succeeded(past.last())
	}
	rel, err := install(ch, values, p)
	if err != nil {
		return err
	}
	if rel != nil && rel.Info != nil && strings.TrimSpace(rel.Info.Notes) != "" {
		_, _ = fmt.Fprintf(e.out, "NOTES:\n%s\n", strings.TrimSpace(rel.Info.Notes))
	}
	return nil
}

// readRelease reads the chart of a release and the row's values for it.
func readRelease(rel protocol.Release) (map[string]any, *chart.Chart, error) {
	values, err := readValues(rel.ValuesFile)
	if err != nil {
		return nil, nil, err
	}
	ch, err := loadChart(rel.PayloadDir)
	return values, ch, err
}

func (e *executor) runInstall(ch *chart.Chart, values map[string]any, p plan) (*release.Release, error) {
	job := e.command.Job
	i := action.NewInstall(e.configuration(p.labels))
	i.ReleaseName, i.Namespace = job.Helm.Release, job.Helm.Namespace
	i.CreateNamespace = p.newNamespace
	i.SkipCRDs = !p.newCRDs // all are there; it may not even be allowed to look
	i.Replace = true        // after `helm uninstall --keep-history`
	i.Wait, i.Timeout = true, time.Until(e.command.Until)
	i.Description = "Install complete: release " + job.Release.Version
	return i.Run(ch, values)
}

func (e *executor) runUpgrade(ch *chart.Chart, values map[string]any, p plan) (*release.Release, error) {
	job := e.command.Job
	u := action.NewUpgrade(e.configuration(p.labels))
	u.Install, u.Namespace = true, job.Helm.Namespace
	u.Wait, u.Timeout = true, time.Until(e.command.Until)
	u.ResetValues = true
	u.MaxHistory = job.Helm.HistoryMax
	u.Description = "Upgrade complete: release " + job.Release.Version
	return u.Run(job.Helm.Release, ch, values)
}
