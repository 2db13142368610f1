package helm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// executor carries out one command inside the child.
type executor struct {
	command command
	cluster *cluster
	client  *client
	report  *deploy.Report
	out     io.Writer // what charts and hooks say to people
	conn    *conn
}

// configuration is Helm's view of the cluster. New revisions get labels.
func (e *executor) configuration(labels map[string]string) *action.Configuration {
	store := *e.cluster.releases
	store.Driver = &labelingDriver{
		Driver: store.Driver, labels: labels,
		beforeCreate: func() error {
			e.client.markChanged()
			return fault.Point("helm.record")
		},
		created: func(revision int) {
			e.conn.send(event{Created: revision})
			_ = fault.Point(fmt.Sprintf("helm.recorded:%d", revision)) // only kills make sense here
		},
	}
	return &action.Configuration{
		RESTClientGetter: e.cluster.getter,
		KubeClient:       e.client,
		Releases:         &store,
		Log:              e.cluster.log,
		HookOutputFunc:   func(_, _, _ string) io.Writer { return e.out },
	}
}

func (e *executor) run(ctx context.Context) error {
	switch e.command.Name {
	case commandUpgrade:
		return e.upgrade(ctx)
	case commandRollback:
		return e.rollback(ctx)
	case commandUninstall:
		return e.uninstall()
	case commandWait:
		return e.wait()
	}
	return fmt.Errorf("unknown command %q", e.command.Name)
}

// wait waits until the newest revision's objects are ready.
func (e *executor) wait() error {
	past, err := e.cluster.readHistory(e.command.Job.Helm.Release)
	if err != nil {
		return err
	}
	if past.last() == nil {
		return errors.New("the release is gone")
	}
	list, err := e.client.Build(bytes.NewBufferString(past.last().Manifest), false)
	if err != nil {
		return err
	}
	return e.client.Wait(list, time.Until(e.command.Until))
}

// currentResources returns the objects of the revision that serves, or of the
// newest one when none ever did.
func (e *executor) currentResources(past history) (kube.ResourceList, error) {
	if rel := cmp.Or(past.serving(), past.last()); rel != nil {
		return e.resourcesOf(rel)
	}
	return nil, nil
}

// resourcesOf returns the objects of a revision. An API that does not answer is an
// error: what is left out may be deleted.
func (e *executor) resourcesOf(rel *release.Release) (kube.ResourceList, error) {
	list, err := e.client.Build(bytes.NewBufferString(rel.Manifest), false)
	if err != nil {
		return nil, fmt.Errorf("look for the objects of revision %d: %s", rel.Version, deploy.OneLine(err.Error()))
	}
	return list, nil
}
