package helm

import (
	"context"
	"fmt"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/kube"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// progressTick is how often the objects a release waits for are looked at.
const progressTick = 2 * time.Second

// client is the child's Kubernetes client: Helm's, bounded by one deadline for
// everything, since Helm gives each hook and each wait the whole timeout anew,
// and telling what it waits for.
type client struct {
	*kube.Client
	cluster *cluster
	report  *deploy.Report
	until   time.Time

	owner string // namespace and name of the release
	// afterFailure tells that the release before this one failed, or one since.
	afterFailure bool
	leftovers    kube.ResourceList // what Update undoes besides
	told         []string          // by tellOnce

	markChanged func()                 // the cluster is about to be changed
	notUndone   func(error)            // something of an earlier revision stays, and why
	hookFailed  func(deploy.Diagnosis) // before the hook's policy deletes it
}

func (c *cluster) helmClient() *kube.Client {
	k := kube.New(c.getter)
	k.Namespace = c.namespace
	k.Log = c.log
	return k
}

// remaining returns timeout, or what the deadline leaves of it.
func (k *client) remaining(timeout time.Duration) time.Duration {
	return max(time.Millisecond, min(timeout, time.Until(k.until)))
}

func (k *client) Create(list kube.ResourceList) (*kube.Result, error) {
	k.markChanged()
	return k.Client.Create(list)
}

func (k *client) Delete(list kube.ResourceList) (*kube.Result, []error) {
	k.markChanged()
	return k.Client.Delete(list)
}

func (k *client) DeleteWithPropagationPolicy(list kube.ResourceList, policy v1.DeletionPropagation) (*kube.Result, []error) {
	k.markChanged()
	return k.Client.DeleteWithPropagationPolicy(list, policy)
}

func (k *client) Wait(list kube.ResourceList, timeout time.Duration) error {
	defer k.watch(list)()
	return k.Client.Wait(list, k.remaining(timeout))
}

func (k *client) WaitWithJobs(list kube.ResourceList, timeout time.Duration) error {
	defer k.watch(list)()
	return k.Client.WaitWithJobs(list, k.remaining(timeout))
}

func (k *client) WaitForDelete(list kube.ResourceList, timeout time.Duration) error {
	if names := existing(list); len(names) > 0 {
		k.report.Event(task.PhaseApplying, "%s", k.cluster.quote("waiting until "+strings.Join(names, ", ")+" is gone"))
	}
	err := k.Client.WaitForDelete(list, k.remaining(timeout))
	if err == nil {
		return nil
	}
	for _, info := range list {
		if info.Get() != nil {
			continue
		}
		why := describe(info) + " was deleted and is not gone"
		if o, err := meta.Accessor(info.Object); err == nil && len(o.GetFinalizers()) > 0 {
			why += ": it waits for " + strings.Join(o.GetFinalizers(), ", ")
		}
		k.hookFailed(deploy.Diagnosis{Cause: why})
		break
	}
	return err
}

// WatchUntilReady waits for a hook.
func (k *client) WatchUntilReady(list kube.ResourceList, timeout time.Duration) error {
	var names []string
	for _, info := range list {
		if kind := info.Mapping.GroupVersionKind.Kind; kind == "Job" || kind == "Pod" {
			names = append(names, strings.ToLower(kind)+"/"+info.Name)
		}
	}
	if len(names) > 0 {
		k.report.Event(task.PhaseApplying, "running hook %s", strings.Join(names, ", "))
	}
	err := k.Client.WatchUntilReady(list, k.remaining(timeout))
	if err == nil {
		return nil
	}
	for _, info := range list {
		o := object{info.Mapping.GroupVersionKind, info.Namespace, info.Name}
		if o.kind.Kind != "Job" && o.kind.Kind != "Pod" {
			continue
		}
		what := fmt.Sprintf("hook %s failed", o)
		if time.Now().After(k.until.Add(-time.Second)) {
			what = fmt.Sprintf("hook %s was not done in time", o)
		}
		d := k.cluster.diagnoseHook(context.Background(), o)
		if d == nil {
			d = &deploy.Diagnosis{Cause: deploy.OneLine(err.Error())}
		}
		d.Cause = what + ": " + d.Cause
		k.hookFailed(*d)
		break
	}
	return err
}

// watch reports what of list is not ready, whenever that changes, until the
// returned function is called, which waits for its end.
func (k *client) watch(list kube.ResourceList) (stop func()) {
	objects, waits := watchedOf(list)
	if waits == 0 {
		return func() {}
	}
	k.report.Event(task.PhaseWaiting, "waiting until %s ready", deploy.CountAre(waits, "object"))
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressTick)
		defer tick.Stop()
		for before := ""; ; {
			// Not cut off by the end of the wait: client-go would log an error.
			ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
			k.unblock(ctx, objects)
			now := k.cluster.notReady(ctx, objects)
			cancel()
			if now != "" && now != before {
				k.report.Event(task.PhaseWaiting, "%s", k.cluster.quote(now))
				before = now
			}
			select {
			case <-ended:
				return
			case <-tick.C:
			}
		}
	}()
	return func() { close(ended); <-done }
}
