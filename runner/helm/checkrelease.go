package helm

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// CheckRelease reads the chart and the values of job's release as a deployment does,
// and says why one would refuse them wherever it is: what depends on the cluster is not
// known here. The error shows no secret.
func CheckRelease(job *protocol.Job) error {
	if job.Helm == nil {
		return errors.New("the job names no Helm release")
	}
	values, ch, err := readRelease(job.Release)
	if err != nil {
		return err
	}
	report := deploy.NewReport(io.Discard, nil)
	report.Learn(secretsOfValues(values))
	if err := checkChart(ch, values, job.Helm); err != nil {
		return errors.New(report.Line(err.Error()))
	}
	return nil
}

func checkChart(ch *chart.Chart, values map[string]any, h *protocol.Helm) error {
	if err := chartutil.ProcessDependenciesWithMerge(ch, values); err != nil {
		return fmt.Errorf("work out the chart's dependencies: %s", deploy.OneLine(err.Error()))
	}
	if err := checkSchemas(ch); err != nil {
		return err
	}
	options := chartutil.ReleaseOptions{Name: h.Release, Namespace: h.Namespace, Revision: 1, IsInstall: true}
	top, err := chartutil.ToRenderValuesWithSchemaValidation(ch, values, options, chartutil.DefaultCapabilities, false)
	if err != nil {
		return errors.New(deploy.OneLine(err.Error()))
	}
	// Other errors may be those of this place: a template can ask what the cluster offers.
	if _, err := (engine.Engine{LintMode: true}).Render(ch, top); err != nil && strings.Contains(err.Error(), "parse error at") {
		return fmt.Errorf("render the chart: %s", deploy.OneLine(err.Error()))
	}
	return nil
}
