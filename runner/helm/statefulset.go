package helm

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// blockingPod returns the pod of an earlier revision that keeps a StatefulSet from
// being updated, nil when there is none. A StatefulSet updates its pods in order, and waits for one that is not ready,
// also when the update would replace it: Kubernetes documents under "Forced rollback"
// that only its deletion helps.
func (c *cluster) blockingPod(ctx context.Context, o object) *corev1.Pod {
	set, err := c.client.AppsV1().StatefulSets(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
	if err != nil || set.Status.ObservedGeneration < set.Generation || set.Status.UpdateRevision == "" ||
		set.Spec.PodManagementPolicy == appsv1.ParallelPodManagement || set.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return nil
	}
	pods, err := c.client.CoreV1().Pods(o.namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(set.Spec.Selector)})
	if err != nil {
		return nil
	}
	var first *corev1.Pod
	lowest := 0
	for i := range pods.Items {
		pod := &pods.Items[i]
		n, err := strconv.Atoi(pod.Name[strings.LastIndexByte(pod.Name, '-')+1:])
		if err == nil && metav1.IsControlledBy(pod, set) && !podReady(pod) && (first == nil || n < lowest) {
			first, lowest = pod, n
		}
	}
	if first == nil || first.DeletionTimestamp != nil || first.Labels[appsv1.ControllerRevisionHashLabelKey] == set.Status.UpdateRevision {
		return nil
	}
	if u := set.Spec.UpdateStrategy.RollingUpdate; u != nil && u.Partition != nil && lowest < int(*u.Partition) {
		return nil // it would come again as it is
	}
	return first
}

// unblock deletes the pods that keep StatefulSets from being updated. Those of a release that
// failed have no future; others may just be starting, and are deleted only when they
// cannot come up by themselves.
func (k *client) unblock(ctx context.Context, objects []object) {
	for _, o := range objects {
		if o.kind.GroupKind() != statefulSetKind {
			continue
		}
		pod := k.cluster.blockingPod(ctx, o)
		if pod == nil {
			continue
		}
		if p := k.cluster.assess(pod); !k.afterFailure && (p == nil || p.severity < severityStuck) {
			continue
		}
		if ok, err := k.cluster.allowed(ctx, permission{resource: "pods", namespace: pod.Namespace, verb: "delete"}); err != nil || !ok {
			k.tellOnce(task.PhaseWaiting, fmt.Sprintf("statefulset %q waits for pod %q of an earlier revision, which the agent may not delete", o.name, pod.Name))
			continue
		}
		k.report.Event(task.PhaseWaiting, "deleting pod %q: it is of an earlier revision and not ready, and statefulset %q would wait for it for ever", pod.Name, o.name)
		err := k.cluster.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
		if err != nil {
			k.cluster.log("deleting pod %s failed: %v", pod.Name, err)
		}
	}
}
