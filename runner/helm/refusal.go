package helm

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/resource"
	"sigs.k8s.io/yaml"
)

// surroundings are what may change, with a release, the API's mind about one of its
// objects: what a dry run of that object alone does not see.
type surroundings struct {
	names      map[string]int            // of the objects that the release brings, and of how many
	namespaces map[string]bool           // that it makes, or changes
	kinds      map[schema.GroupKind]bool // that it defines
	admission  bool                      // it holds rules of admission
	limits     bool                      // it holds quotas or limits
	frees      bool                      // what it holds is removed before
	runs       bool                      // a hook before it may change anything in the cluster
	services   kube.ResourceList         // that may free ports and addresses
}

// surroundingsOf returns those of the objects of targets: with the hooks that
// run before them, and what the release holds now.
func surroundingsOf(targets, hooks, current kube.ResourceList, before []*release.Hook) surroundings {
	s := surroundings{names: map[string]int{}, namespaces: map[string]bool{}, kinds: map[schema.GroupKind]bool{}}
	for _, info := range slices.Concat(targets, hooks) {
		s.names[info.Name]++
		switch info.Mapping.GroupVersionKind.GroupKind() {
		case schema.GroupKind{Kind: "Namespace"}:
			s.namespaces[info.Name] = true
		case schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}:
			if kind, ok := definedKind(info.Object); ok {
				s.kinds[kind] = true
			}
		}
	}
	for _, info := range slices.Concat(targets, hooks, current) {
		switch kind := info.Mapping.GroupVersionKind; {
		case kind.Group == "admissionregistration.k8s.io":
			s.admission = true
		case kind.Group == "" && (kind.Kind == "ResourceQuota" || kind.Kind == "LimitRange"):
			s.limits = true
		case kind.GroupKind() == serviceKind:
			s.services = append(s.services, info)
		}
	}
	s.runs = slices.ContainsFunc(before, mayChangeCluster)
	return s
}

// definedKind returns the kind that a CRD defines.
func definedKind(crd runtime.Object) (kind schema.GroupKind, ok bool) {
	u, ok := crd.(*unstructured.Unstructured)
	if !ok {
		return kind, false
	}
	kind.Group, _, _ = unstructured.NestedString(u.Object, "spec", "group")
	kind.Kind, ok, _ = unstructured.NestedString(u.Object, "spec", "names", "kind")
	return kind, ok
}

// mayChangeCluster reports whether a hook runs a program that can be expected to have
// rights in the cluster: it is given a service account of its own.
func mayChangeCluster(h *release.Hook) bool {
	o, ok := manifestOf(h.Manifest)
	if !ok {
		return true
	}
	path := []string{"spec"}
	switch o.GetKind() {
	case "Job":
		path = []string{"spec", "template", "spec"}
	case "Pod":
	default:
		return false
	}
	account, _, _ := unstructured.NestedString(o.Object, append(path, "serviceAccountName")...)
	old, _, _ := unstructured.NestedString(o.Object, append(path, "serviceAccount")...)
	return account != "" && account != "default" || old != "" && old != "default"
}

// refuses reports whether err, the answer to a dry run of an object, is sure to come
// again when that is applied. Hook tells that it is one, exists that the cluster has
// the object.
func (s surroundings) refuses(err error, info *resource.Info, hook, exists bool) bool {
	var status apierrors.APIStatus
	if err == nil || !errors.As(err, &status) {
		return false
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "does not support dry run"), strings.Contains(text, "failed calling webhook"), s.missing(text, info):
		return false
	case strings.Contains(text, "admission webhook"), strings.Contains(text, "ValidatingAdmissionPolicy"):
		return !s.admission && !s.runs && !s.namespaces[info.Namespace]
	}
	switch status.Status().Code {
	case http.StatusBadRequest:
		return true
	case http.StatusNotFound:
		return strings.HasPrefix(text, "namespaces ") && !exists && !s.runs && !s.namespaces[info.Namespace]
	case http.StatusUnprocessableEntity:
		return !strings.Contains(text, "already allocated") || !hook && !s.runs && !s.frees && !s.mayFree(info)
	case http.StatusForbidden:
		return !s.runs && !s.namespaces[info.Namespace] && s.forbids(text, info, hook)
	}
	return false
}

// forbids is refuses for what the API forbids.
func (s surroundings) forbids(text string, info *resource.Info, hook bool) bool {
	switch {
	case strings.Contains(text, "being terminated"):
		return false
	case strings.Contains(text, "exceeded quota"):
		return !hook && !s.limits && (neverFits(text) || counted(text) && !s.frees)
	case strings.Contains(text, "attempting to grant"): // the role of a binding may be about to change
		return !strings.HasSuffix(info.Mapping.GroupVersionKind.Kind, "Binding")
	case strings.Contains(text, "must specify"), strings.Contains(text, " usage per "):
		return !s.limits
	}
	return true
}

// notThere are words of an answer that something is missing.
var notThere = regexp.MustCompile(`(?i)not found|does not exist|doesn't exist|no such|no \w+ with name`)

// missing reports whether the API misses what the release brings itself.
func (s surroundings) missing(text string, info *resource.Info) bool {
	if !notThere.MatchString(text) || strings.HasPrefix(text, "namespaces ") {
		return false
	}
	words := strings.FieldsFunc(text, func(r rune) bool {
		return !(r == '-' || r == '.' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9')
	})
	return slices.ContainsFunc(words, func(w string) bool {
		w = strings.Trim(w, ".")
		others := s.names[w]
		if w == info.Name {
			others--
		}
		return others > 0
	})
}

// mayFree reports whether another Service of the release holds a port or an address
// that the one of info asks for: it may be changed before.
func (s surroundings) mayFree(info *resource.Info) bool {
	wanted := portsOf(info.Object)
	return slices.ContainsFunc(s.services, func(other *resource.Info) bool {
		return (other.Name != info.Name || other.Namespace != info.Namespace) &&
			slices.ContainsFunc(portsOf(other.Object), func(p int64) bool { return slices.Contains(wanted, p) })
	})
}

// portsOf returns the ports that a Service holds on each node.
func portsOf(o runtime.Object) (ports []int64) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return nil
	}
	var s corev1.Service
	if runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &s) != nil {
		return nil
	}
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			ports = append(ports, int64(p.NodePort))
		}
	}
	if s.Spec.HealthCheckNodePort != 0 {
		ports = append(ports, int64(s.Spec.HealthCheckNodePort))
	}
	return ports
}

// quotaAnswer is what the API says of a quota that is exceeded.
var quotaAnswer = regexp.MustCompile(`requested: (\S+), used: \S+, limited: (\S+)`)

// quantities reads "cpu=1,pods=2".
func quantities(text string) map[string]apiresource.Quantity {
	found := map[string]apiresource.Quantity{}
	for item := range strings.SplitSeq(strings.TrimRight(text, ",."), ",") {
		name, value, _ := strings.Cut(item, "=")
		if q, err := apiresource.ParseQuantity(value); err == nil {
			found[name] = q
		}
	}
	return found
}

// neverFits reports whether something is requested that no quota would have room for,
// whatever else were gone.
func neverFits(text string) bool {
	m := quotaAnswer.FindStringSubmatch(text)
	if m == nil {
		return false
	}
	limited := quantities(m[2])
	for name, want := range quantities(m[1]) {
		if most, ok := limited[name]; ok && want.Cmp(most) > 0 {
			return true
		}
	}
	return false
}

// counted reports whether a quota of a number of objects alone is exceeded. Helm
// removes objects after it has made the new ones. Its own records are Secrets, and
// an old one may go first.
func counted(text string) bool {
	m := quotaAnswer.FindStringSubmatch(text)
	if m == nil {
		return false
	}
	names := quantities(m[1])
	for name := range names {
		switch {
		case name == "configmaps", name == "persistentvolumeclaims", name == "services":
		case strings.HasPrefix(name, "count/") && name != "count/secrets" && name != "count/pods":
		default:
			return false
		}
	}
	return len(names) > 0
}

// advice returns what can be done about an answer of the API, as the end of a
// sentence; "" when that says it all.
func advice(text string) string {
	for _, words := range []string{"field is immutable", "may not change once set", "updates to statefulset spec", "cannot change roleRef", "is immutable after creation"} {
		if strings.Contains(text, words) {
			return " (it cannot be changed in place: remove the object first, or give it another name in the chart)"
		}
	}
	if strings.HasPrefix(text, "namespaces ") {
		return " (create the namespace before)"
	}
	return ""
}

// manifestOf reads a YAML document.
func manifestOf(doc string) (*unstructured.Unstructured, bool) {
	u := &unstructured.Unstructured{}
	return u, yaml.Unmarshal([]byte(doc), &u.Object) == nil && u.Object != nil
}
