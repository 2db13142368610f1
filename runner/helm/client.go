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
)

// progressTick is how often the objects a release waits for are looked at.
const progressTick = 2 * time.Second

// client is the child's Kubernetes client: Helm's, bounded by one deadline for
// everything, since Helm gives each hook and each wait the whole timeout anew,
// and telling what it waits for.
type client struct {
	*kube.Client
	cluster *cluster
	until   time.Time
	touch   func() // the cluster is about to be changed
	say     func(task.Phase, string)
	failed  func(*cause) // why a hook failed, before its policy deletes it
}

func (c *cluster) helmClient() *kube.Client {
	k := kube.New(c.getter)
	k.Namespace = c.namespace
	k.Log = c.log
	return k
}

// left returns timeout, or what the deadline leaves of it.
func (k *client) left(timeout time.Duration) time.Duration {
	return max(time.Millisecond, min(timeout, time.Until(k.until)))
}

func (k *client) Create(list kube.ResourceList) (*kube.Result, error) {
	k.touch()
	return k.Client.Create(list)
}

func (k *client) Update(original, target kube.ResourceList, force bool) (*kube.Result, error) {
	k.touch()
	return k.Client.Update(original, target, force)
}

func (k *client) Delete(list kube.ResourceList) (*kube.Result, []error) {
	k.touch()
	return k.Client.Delete(list)
}

func (k *client) DeleteWithPropagationPolicy(list kube.ResourceList, policy v1.DeletionPropagation) (*kube.Result, []error) {
	k.touch()
	return k.Client.DeleteWithPropagationPolicy(list, policy)
}

func (k *client) Wait(list kube.ResourceList, timeout time.Duration) error {
	stop := k.watch(list)
	defer stop()
	return k.Client.Wait(list, k.left(timeout))
}

func (k *client) WaitWithJobs(list kube.ResourceList, timeout time.Duration) error {
	stop := k.watch(list)
	defer stop()
	return k.Client.WaitWithJobs(list, k.left(timeout))
}

func (k *client) WaitForDelete(list kube.ResourceList, timeout time.Duration) error {
	var names []string
	for _, info := range list {
		if info.Get() == nil {
			names = append(names, describe(info))
		}
	}
	if len(names) > 0 {
		k.say(task.PhaseApplying, task.SafeText("waiting until "+strings.Join(names, ", ")+" is gone", maxQuote))
	}
	err := k.Client.WaitForDelete(list, k.left(timeout))
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
		k.failed(&cause{Sentence: why})
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
		k.say(task.PhaseApplying, "running hook "+strings.Join(names, ", "))
	}
	err := k.Client.WatchUntilReady(list, k.left(timeout))
	if err == nil {
		return nil
	}
	for _, info := range list {
		o := object{info.Mapping.GroupVersionKind.Kind, info.Namespace, info.Name}
		if o.kind != "Job" && o.kind != "Pod" {
			continue
		}
		what := fmt.Sprintf("hook %s failed", o)
		if time.Now().After(k.until.Add(-time.Second)) {
			what = fmt.Sprintf("hook %s was not done in time", o)
		}
		found := k.cluster.explainPods(context.Background(), o)
		if found == nil {
			found = &cause{Sentence: oneLine(err.Error())}
		}
		found.Sentence = what + ": " + found.Sentence
		k.failed(found)
		break
	}
	return err
}

// watch reports what of list is not ready, whenever that changes, until the
// returned function is called, which waits for its end.
func (k *client) watch(list kube.ResourceList) (stop func()) {
	objects := objectsIn(list)
	if len(objects) == 0 {
		return func() {}
	}
	noun := "objects are"
	if len(objects) == 1 {
		noun = "object is"
	}
	k.say(task.PhaseWaiting, fmt.Sprintf("waiting until %d %s ready", len(objects), noun))
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressTick)
		defer tick.Stop()
		for before := ""; ; {
			// Not cut off by the end of the wait: client-go would log an error.
			ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
			now := k.cluster.laggards(ctx, objects)
			cancel()
			if now != "" && now != before {
				k.say(task.PhaseWaiting, task.SafeText(now, maxQuote))
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
