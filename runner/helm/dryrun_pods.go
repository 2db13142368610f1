package helm

import (
	"context"
	"reflect"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/resource"
)

var podResource = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// tryPod has the API try a pod of a workload, as its controller would make it: only that
// is measured against Pod Security, quotas and limits. Applied is the workload as the
// API would store it, live what it stores now, nil for none.
func (r *rehearsal) tryPod(ctx context.Context, info *resource.Info, applied, live runtime.Object) error {
	now, ok := applied.(*unstructured.Unstructured)
	if !ok || !r.makesPods[info.Namespace] {
		return nil
	}
	before, _ := live.(*unstructured.Unstructured)
	if !startsPods(info.Mapping.GroupVersionKind.GroupKind(), now, before) {
		return nil
	}
	err := r.createPod(ctx, info, now)
	if !r.context.refusesPod(err, info.Namespace) {
		return nil
	}
	if ready, _, _ := unstructured.NestedInt64(content(before), "status", "readyReplicas"); ready > 0 && violatesPodSecurity(err) && violatesPodSecurity(r.createPod(ctx, info, before)) {
		return nil // nor are the pods that run: controllers may be exempt
	}
	return err
}

func violatesPodSecurity(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "violates PodSecurity")
}

// startsPods reports whether a workload is sure to start pods when it becomes now, and
// Helm to wait for them.
func startsPods(kind schema.GroupKind, now, before *unstructured.Unstructured) bool {
	replicas, _, _ := unstructured.NestedInt64(now.Object, "spec", "replicas")
	paused, _, _ := unstructured.NestedBool(now.Object, "spec", "paused")
	if replicas == 0 || paused {
		return false
	}
	if before == nil {
		return kind == deploymentKind || kind == statefulSetKind || kind == replicaSetKind
	}
	template, _, _ := unstructured.NestedMap(now.Object, "spec", "template")
	old, _, _ := unstructured.NestedMap(before.Object, "spec", "template")
	strategy, _, _ := unstructured.NestedString(now.Object, "spec", "updateStrategy", "type")
	partition, _, _ := unstructured.NestedInt64(now.Object, "spec", "updateStrategy", "rollingUpdate", "partition")
	return !reflect.DeepEqual(template, old) && (kind == deploymentKind || kind == statefulSetKind && strategy != "OnDelete" && partition == 0)
}

// createPod tries the pod that a workload's template describes.
func (r *rehearsal) createPod(ctx context.Context, info *resource.Info, workload *unstructured.Unstructured) error {
	template, _, _ := unstructured.NestedMap(workload.Object, "spec", "template")
	pod := &unstructured.Unstructured{Object: template}
	if pod.Object == nil {
		return nil
	}
	pod.SetAPIVersion("v1")
	pod.SetKind("Pod")
	pod.SetName("")
	pod.SetGenerateName(info.Name + "-")
	_, err := r.cluster.dynamic.Resource(podResource).Namespace(info.Namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// refusesPod reports whether err, the answer to a dry run of a pod, is sure to come to the
// workload's controller as well.
func (s surroundings) refusesPod(err error, namespace string) bool {
	if !apierrors.IsForbidden(err) || s.runs || s.namespaces[namespace] {
		return false
	}
	text := err.Error()
	if violatesPodSecurity(err) {
		return true
	}
	return !s.limits && (strings.Contains(text, "exceeded quota") && neverFits(text) || strings.Contains(text, "must specify") || strings.Contains(text, " usage per "))
}

// content returns the content of an object, nil for none.
func content(u *unstructured.Unstructured) map[string]any {
	if u == nil {
		return nil
	}
	return u.Object
}

// podNamespaces returns the namespaces of objects in which the agent may create pods.
func (c *cluster) podNamespaces(ctx context.Context, objects []*resource.Info) map[string]bool {
	may := map[string]bool{}
	for _, info := range objects {
		kind := info.Mapping.GroupVersionKind.GroupKind()
		if _, asked := may[info.Namespace]; asked || kind != deploymentKind && kind != statefulSetKind && kind != replicaSetKind {
			continue
		}
		ok, err := c.allowed(ctx, permission{resource: "pods", namespace: info.Namespace, verb: "create"})
		may[info.Namespace] = err == nil && ok
	}
	return may
}
