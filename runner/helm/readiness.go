package helm

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	"helm.sh/helm/v3/pkg/kube"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

// object is one of a release.
type object struct {
	kind            schema.GroupVersionKind
	namespace, name string
}

func (o object) String() string { return strings.ToLower(o.kind.Kind) + "/" + o.name }

// The kinds that Helm waits for.
var (
	deploymentKind  = schema.GroupKind{Group: "apps", Kind: "Deployment"}
	statefulSetKind = schema.GroupKind{Group: "apps", Kind: "StatefulSet"}
	daemonSetKind   = schema.GroupKind{Group: "apps", Kind: "DaemonSet"}
	replicaSetKind  = schema.GroupKind{Group: "apps", Kind: "ReplicaSet"}
	podKind         = schema.GroupKind{Kind: "Pod"}
	volumeClaimKind = schema.GroupKind{Kind: "PersistentVolumeClaim"}
	serviceKind     = schema.GroupKind{Kind: "Service"}
)

// awaited holds them all.
var awaited = map[schema.GroupKind]bool{
	deploymentKind: true, statefulSetKind: true, daemonSetKind: true, replicaSetKind: true,
	podKind: true, volumeClaimKind: true, serviceKind: true,
}

// watched reports whether objects of a kind may be what a release waits for: those
// that Helm waits for, and custom resources, on whose controllers these may depend.
func watched(kind schema.GroupVersionKind) bool {
	return awaited[kind.GroupKind()] || !scheme.Scheme.IsGroupRegistered(kind.Group)
}

// watchedIn returns the watched objects of a manifest.
func watchedIn(manifest, namespace string) []object {
	var found []object
	for _, doc := range sortedDocs(manifest) {
		if o, ok := objectOf(doc, namespace); ok && watched(o.kind) {
			found = append(found, o)
		}
	}
	return found
}

// objectOf returns the object that a YAML document describes, in namespace unless
// it names another one.
func objectOf(doc, namespace string) (_ object, ok bool) {
	var head struct {
		APIVersion string
		Kind       string
		Metadata   struct{ Name, Namespace string }
	}
	if yaml.Unmarshal([]byte(doc), &head) != nil {
		return object{}, false
	}
	kind := schema.FromAPIVersionAndKind(head.APIVersion, head.Kind)
	return object{kind, cmp.Or(head.Metadata.Namespace, namespace), head.Metadata.Name}, head.Kind != ""
}

// watchedOf returns the watched objects of list, and how many of them Helm waits
// for.
func watchedOf(list kube.ResourceList) (objects []object, waits int) {
	for _, info := range list {
		kind := info.Mapping.GroupVersionKind
		if watched(kind) {
			objects = append(objects, object{kind, info.Namespace, info.Name})
		}
		if awaited[kind.GroupKind()] {
			waits++
		}
	}
	return objects, waits
}

// readiness is how far an object is.
type readiness struct {
	ready bool
	text  string // "1/3 ready" and the like
	// pods selects the object's own pods, nil for none. It leaves out those of
	// the revision before.
	pods labels.Selector
	why  string // what the object itself says about its problem
}

// predicate returns how far an object is, as what is said of it in a sentence.
func (r readiness) predicate() string {
	if strings.HasPrefix(r.text, "has ") {
		return r.text
	}
	return "is " + r.text
}

// get reads an object.
func (c *cluster) get(ctx context.Context, o object) (*unstructured.Unstructured, error) {
	mapper, err := c.getter.ToRESTMapper()
	if err != nil {
		return nil, err
	}
	mapping, err := mapper.RESTMapping(o.kind.GroupKind(), o.kind.Version)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return c.dynamic.Resource(mapping.Resource).Get(ctx, o.name, metav1.GetOptions{})
	}
	return c.dynamic.Resource(mapping.Resource).Namespace(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
}

// readinessOf returns how far o is. Kstatus says whether it is ready; where Helm
// waits for more than that, or for less, so does this. The texts are ours where
// counts say more.
func (c *cluster) readinessOf(ctx context.Context, o object) (readiness, error) {
	u, err := c.get(ctx, o)
	if err != nil {
		return readiness{}, err
	}
	computed, err := status.Compute(u)
	if err != nil {
		return readiness{}, fmt.Errorf("read the status of %s: %w", o, err)
	}
	r := readiness{ready: computed.Status == status.CurrentStatus, text: "not ready"}
	number := func(field string) int { return status.GetIntField(u.Object, field, 0) }
	want := status.GetIntField(u.Object, ".spec.replicas", 1)
	switch o.kind.GroupKind() {
	case deploymentKind:
		err := c.deploymentReadiness(ctx, u, computed, &r)
		return r, err
	case statefulSetKind:
		ready := number(".status.readyReplicas")
		current, update := status.GetStringField(u.Object, ".status.currentRevision", ""), status.GetStringField(u.Object, ".status.updateRevision", "")
		if update != "" && current != update {
			ready = min(ready, number(".status.updatedReplicas"))
		}
		r.count(ready, want, computed)
		r.pods = podsOf(u, appsv1.ControllerRevisionHashLabelKey, update)
	case daemonSetKind:
		ready := min(number(".status.numberReady"), number(".status.updatedNumberScheduled"))
		r.count(ready, number(".status.desiredNumberScheduled"), computed)
		r.pods = podsOf(u, "", "")
	case replicaSetKind:
		r.count(number(".status.readyReplicas"), want, computed)
		r.pods = podsOf(u, "", "")
	case podKind:
		r.ready = r.ready && status.GetStringField(u.Object, ".status.phase", "") != string(corev1.PodSucceeded)
	case volumeClaimKind:
		r.text = "not bound to a volume"
	case serviceKind:
		var s corev1.Service
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &s); err != nil {
			return readiness{}, err
		}
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer && len(s.Spec.ExternalIPs) == 0 && s.Status.LoadBalancer.Ingress == nil {
			r.ready = false
		}
		r.text = "has no external address"
	default:
		r.why = computed.Message
	}
	return r, nil
}

// count says how many of an object's pods are ready. Nobody waits for those of the
// release before to end, as kstatus would.
func (r *readiness) count(ready, want int, computed *status.Result) {
	r.text = fmt.Sprintf("%d/%d ready", ready, want)
	if r.ready || ready < want {
		return
	}
	r.why = computed.Message
	r.ready = len(computed.Conditions) > 0 && computed.Conditions[0].Reason == "ExtraPods"
}

// deploymentReadiness completes r. Only the pods of the newest replica set count:
// the Deployment's own numbers have those of the release before in them.
func (c *cluster) deploymentReadiness(ctx context.Context, u *unstructured.Unstructured, computed *status.Result, r *readiness) error {
	var d appsv1.Deployment
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &d); err != nil {
		return err
	}
	rs, err := c.newReplicaSet(ctx, &d)
	if err != nil {
		return err
	}
	ready := 0
	if rs != nil {
		ready = int(rs.Status.ReadyReplicas)
		r.pods = podsOf(u, appsv1.DefaultDeploymentUniqueLabelKey, rs.Labels[appsv1.DefaultDeploymentUniqueLabelKey])
	}
	r.count(ready, status.GetIntField(u.Object, ".spec.replicas", 1), computed)
	if d.Spec.Paused {
		r.ready = true // as Helm sees it
	}
	for _, cond := range d.Status.Conditions {
		if cond.Type == appsv1.DeploymentReplicaFailure && cond.Status == corev1.ConditionTrue {
			r.why = cond.Message
		}
	}
	return nil
}

// newReplicaSet returns the newest of the deployment's replica sets, nil before
// its controller has made any.
func (c *cluster) newReplicaSet(ctx context.Context, d *appsv1.Deployment) (*appsv1.ReplicaSet, error) {
	list, err := c.client.AppsV1().ReplicaSets(d.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return nil, err
	}
	const revision = "deployment.kubernetes.io/revision"
	var newest *appsv1.ReplicaSet
	highest := -1
	for i := range list.Items {
		rs := &list.Items[i]
		n, err := strconv.Atoi(rs.Annotations[revision])
		if err == nil && n > highest && metav1.IsControlledBy(rs, d) {
			newest, highest = rs, n
		}
	}
	return newest, nil
}

// podsOf returns what selects the pods of an object, those with a label only if
// that has a value; nil when it cannot be told.
func podsOf(u *unstructured.Unstructured, key, value string) labels.Selector {
	var spec struct {
		Spec struct {
			Selector metav1.LabelSelector `json:"selector"`
		} `json:"spec"`
	}
	if runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &spec) != nil {
		return nil
	}
	s := &spec.Spec.Selector
	if value != "" {
		s = metav1.AddLabelToSelector(s, key, value)
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil
	}
	return selector
}

// notReady returns in one line what of objects is not ready; "" when all are.
func (c *cluster) notReady(ctx context.Context, objects []object) string {
	var texts []string
	for _, o := range objects {
		r, err := c.readinessOf(ctx, o)
		switch {
		case ctx.Err() != nil:
			return ""
		case err != nil:
			texts = append(texts, o.String()+" not seen")
		case !r.ready:
			texts = append(texts, o.String()+" "+r.text)
		}
	}
	return strings.Join(texts, ", ")
}
