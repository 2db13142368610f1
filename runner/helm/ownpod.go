package helm

import (
	"context"
	"errors"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// ownWorkload is the workload whose pod the agent runs in: a release that has it may
// end the agent in the middle of the run.
type ownWorkload struct {
	kind            schema.GroupKind
	namespace, name string
}

// findOwnWorkload returns the workload of the agent's own pod, nil for none, and where
// that cannot be found out.
func (c *cluster) findOwnWorkload(ctx context.Context, h *protocol.Helm) *ownWorkload {
	if h.OwnPod == "" {
		return nil
	}
	pod, err := c.client.CoreV1().Pods(h.OwnNamespace).Get(ctx, h.OwnPod, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	owner := metav1.GetControllerOf(pod)
	if owner != nil && owner.Kind == replicaSetKind.Kind {
		set, err := c.client.AppsV1().ReplicaSets(h.OwnNamespace).Get(ctx, owner.Name, metav1.GetOptions{})
		if err != nil {
			return nil
		}
		if of := metav1.GetControllerOf(set); of != nil {
			owner = of
		}
	}
	if owner == nil {
		return nil
	}
	kind := schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind).GroupKind()
	return &ownWorkload{kind, h.OwnNamespace, owner.Name}
}

// is reports whether an object is the own workload.
func (w *ownWorkload) is(info *resource.Info) bool {
	return w != nil && info.Name == w.name && info.Namespace == w.namespace && info.Mapping.GroupVersionKind.GroupKind() == w.kind
}

// replacesOwnPod returns why the change of an object from live to applied cannot be
// waited for by the agent: its own pod has to be gone before a new one comes, and it is
// not gone before the agent has seen the new one. A Deployment that does not wait
// for the old pod to be gone is none of these: the agent has its grace to end.
func (r *rehearsal) replacesOwnPod(info *resource.Info, applied, live runtime.Object) error {
	now, ok := applied.(*unstructured.Unstructured)
	before, was := live.(*unstructured.Unstructured)
	if !ok || !was || !r.own.is(info) {
		return nil
	}
	template, _, _ := unstructured.NestedMap(now.Object, "spec", "template")
	old, _, _ := unstructured.NestedMap(before.Object, "spec", "template")
	strategy := "updateStrategy"
	if r.own.kind == deploymentKind {
		strategy = "strategy"
	}
	kind, _, _ := unstructured.NestedString(now.Object, "spec", strategy, "type")
	surge, _, _ := unstructured.NestedFieldNoCopy(now.Object, "spec", strategy, "rollingUpdate", "maxSurge")
	surges := surge != nil && surge != int64(0) && surge != "0%"
	beside := kind == "RollingUpdate" && (r.own.kind == deploymentKind || r.own.kind != statefulSetKind && surges)
	if reflect.DeepEqual(template, old) || kind == "OnDelete" || beside {
		return nil
	}
	return errors.New("the agent that deploys the release runs in it, and would have to end before it has seen the new one: give the agent a release of its own, or leave its pods as they are")
}
