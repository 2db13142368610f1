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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// object is one that a release waits for, or a hook.
type object struct{ kind, namespace, name string }

func (o object) String() string { return strings.ToLower(o.kind) + "/" + o.name }

// awaited are the kinds that Helm waits for and that may take their time.
var awaited = map[string]bool{
	"Deployment.apps": true, "StatefulSet.apps": true, "DaemonSet.apps": true, "ReplicaSet.apps": true,
	"Pod": true, "PersistentVolumeClaim": true, "Service": true,
}

// objectsOf returns the awaited objects of a manifest.
func objectsOf(manifest, namespace string) []object {
	var found []object
	for _, doc := range sortedDocs(manifest) {
		kind, ok := kindOf(doc)
		if !ok || !awaited[kind.GroupKind().String()] {
			continue
		}
		var d struct{ Metadata struct{ Name string } }
		if yaml.Unmarshal([]byte(doc), &d) != nil {
			continue
		}
		found = append(found, object{kind.Kind, namespaceOf(doc, namespace), d.Metadata.Name})
	}
	return found
}

// namespaceOf returns the namespace that a document names, else the release's.
func namespaceOf(doc, release string) string {
	var d struct{ Metadata struct{ Namespace string } }
	if yaml.Unmarshal([]byte(doc), &d) != nil {
		return release
	}
	return cmp.Or(d.Metadata.Namespace, release)
}

// objectsIn returns the awaited objects of list.
func objectsIn(list kube.ResourceList) []object {
	var found []object
	for _, info := range list {
		if kind := info.Mapping.GroupVersionKind; awaited[kind.GroupKind().String()] {
			found = append(found, object{kind.Kind, info.Namespace, info.Name})
		}
	}
	return found
}

// standing is how an object fares.
type standing struct {
	ready bool
	text  string // "1/3 ready" and the like
	// pods selects the object's own pods, nil for none. It leaves out those of
	// the revision before.
	pods labels.Selector
	why  string // what the object itself says about its trouble
}

// look returns how o fares.
func (c *cluster) look(ctx context.Context, o object) (standing, error) {
	get := metav1.GetOptions{}
	switch o.kind {
	case "Deployment":
		d, err := c.client.AppsV1().Deployments(o.namespace).Get(ctx, o.name, get)
		if err != nil {
			return standing{}, err
		}
		return c.lookAtDeployment(ctx, d)
	case "StatefulSet":
		s, err := c.client.AppsV1().StatefulSets(o.namespace).Get(ctx, o.name, get)
		if err != nil {
			return standing{}, err
		}
		ready := s.Status.ReadyReplicas
		if s.Status.UpdateRevision != "" && s.Status.CurrentRevision != s.Status.UpdateRevision {
			ready = min(ready, s.Status.UpdatedReplicas)
		}
		st := count(ready, replicas(s.Spec.Replicas), s.Status.ObservedGeneration >= s.Generation)
		st.pods = selector(s.Spec.Selector, appsv1.ControllerRevisionHashLabelKey, s.Status.UpdateRevision)
		return st, nil
	case "DaemonSet":
		d, err := c.client.AppsV1().DaemonSets(o.namespace).Get(ctx, o.name, get)
		if err != nil {
			return standing{}, err
		}
		st := count(min(d.Status.NumberReady, d.Status.UpdatedNumberScheduled), d.Status.DesiredNumberScheduled, d.Status.ObservedGeneration >= d.Generation)
		st.pods = selector(d.Spec.Selector, "", "")
		return st, nil
	case "ReplicaSet":
		r, err := c.client.AppsV1().ReplicaSets(o.namespace).Get(ctx, o.name, get)
		if err != nil {
			return standing{}, err
		}
		st := count(r.Status.ReadyReplicas, replicas(r.Spec.Replicas), r.Status.ObservedGeneration >= r.Generation)
		st.pods = selector(r.Spec.Selector, "", "")
		return st, nil
	case "Pod":
		p, err := c.client.CoreV1().Pods(o.namespace).Get(ctx, o.name, get)
		if err != nil {
			return standing{}, err
		}
		return standing{ready: podReady(p), text: "not ready"}, nil
	case "PersistentVolumeClaim":
		p, err := c.client.CoreV1().PersistentVolumeClaims(o.namespace).Get(ctx, o.name, get)
		if err != nil {
			return standing{}, err
		}
		return standing{ready: p.Status.Phase == corev1.ClaimBound, text: "not bound to a volume"}, nil
	case "Service":
		s, err := c.client.CoreV1().Services(o.namespace).Get(ctx, o.name, get)
		if err != nil {
			return standing{}, err
		}
		waits := s.Spec.Type == corev1.ServiceTypeLoadBalancer && len(s.Spec.ExternalIPs) == 0 && s.Status.LoadBalancer.Ingress == nil
		return standing{ready: !waits, text: "has no external address"}, nil
	}
	return standing{ready: true}, nil
}

func (c *cluster) lookAtDeployment(ctx context.Context, d *appsv1.Deployment) (standing, error) {
	rs, err := c.newReplicaSet(ctx, d)
	if err != nil {
		return standing{}, err
	}
	var ready int32
	if rs != nil {
		ready = rs.Status.ReadyReplicas
	}
	st := count(ready, replicas(d.Spec.Replicas), d.Status.ObservedGeneration >= d.Generation && rs != nil)
	if d.Spec.Paused {
		st.ready = true // as Helm sees it
	}
	for _, cond := range d.Status.Conditions {
		if cond.Type == appsv1.DeploymentReplicaFailure && cond.Status == corev1.ConditionTrue {
			st.why = cond.Message
		}
	}
	if rs != nil {
		st.pods = selector(d.Spec.Selector, appsv1.DefaultDeploymentUniqueLabelKey, rs.Labels[appsv1.DefaultDeploymentUniqueLabelKey])
	}
	return st, nil
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

func count(ready, want int32, observed bool) standing {
	return standing{ready: observed && ready >= want, text: fmt.Sprintf("%d/%d ready", ready, want)}
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// selector narrows s to the pods with a label, unless that has no value.
func selector(s *metav1.LabelSelector, key, value string) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil
	}
	if value != "" {
		only, err := labels.ValidatedSelectorFromSet(labels.Set{key: value})
		if err == nil {
			if reqs, ok := only.Requirements(); ok {
				sel = sel.Add(reqs...)
			}
		}
	}
	return sel
}

func podReady(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// laggards returns in one line what of objects is not ready; "" when all are.
func (c *cluster) laggards(ctx context.Context, objects []object) string {
	var texts []string
	for _, o := range objects {
		st, err := c.look(ctx, o)
		switch {
		case ctx.Err() != nil:
			return ""
		case err != nil:
			texts = append(texts, o.String()+" not seen")
		case !st.ready:
			texts = append(texts, o.String()+" "+st.text)
		}
	}
	return strings.Join(texts, ", ")
}
