package helm

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"
	apiextv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/cli-runtime/pkg/resource"
)

// leftovers returns the objects of the agent's revisions that never came up since one
// did, and of that one, but for the revision that Helm compares with itself. Helm would
// never remove what they added: an upgrade compares with the last revision that was
// deployed, a rollback with the last one recorded, and a rollback that failed is
// recorded as if it had been applied.
func (e *executor) leftovers(past history, compared *release.Release) kube.ResourceList {
	serving := past.serving()
	var found kube.ResourceList
	for _, rel := range past.sinceUninstall() {
		if rel == compared || rel != serving && (!byAgent(rel) || succeeded(rel) || serving != nil && rel.Version < serving.Version) {
			continue
		}
		list, err := e.resourcesOf(rel)
		if err != nil {
			e.client.notUndone(err)
			continue
		}
		found = append(found, list...)
	}
	return found
}

// Update also undoes what revisions that never came up added. Where the API does not
// take that, Helm's own comparison has to do: what it would bring up must not fail
// because of what an earlier revision left.
func (k *client) Update(original, target kube.ResourceList, force bool) (*kube.Result, error) {
	k.markChanged()
	if len(k.leftovers) == 0 {
		return k.Client.Update(original, target, force)
	}
	all, extra := k.withLeftovers(original)
	tried := copyOf(target)
	res, err := k.Client.Update(all, tried, force)
	if err == nil {
		for i := range target {
			*target[i] = *tried[i]
		}
	} else {
		why := err
		res, err = k.Client.Update(slices.Concat(original, extra.Difference(target)), target, force)
		if err != nil {
			return res, err
		}
		k.notUndone(why)
	}
	for _, info := range extra.Difference(target) {
		if !res.Deleted.Contains(info) && info.Get() == nil && !outlives(info) {
			k.notUndone(fmt.Errorf("%s could not be removed", describe(info)))
		}
	}
	return res, nil
}

// withLeftovers returns original with what the leftovers add to it, and those of its
// objects that are in the leftovers alone and belong to the release.
func (k *client) withLeftovers(original kube.ResourceList) (all, extra kube.ResourceList) {
	all = copyOf(original)
	for _, info := range k.leftovers {
		if known := all.Get(info); known != nil {
			known.Object = union(known, info.Object)
			continue
		}
		live, err := resource.NewHelper(info.Client, info.Mapping).Get(info.Namespace, info.Name)
		if err != nil {
			continue // it was never created, or is not for us to see
		}
		if owner, err := ownerOf(live); err != nil || owner != k.owner {
			continue
		}
		c := copyOf(kube.ResourceList{info})[0]
		all, extra = append(all, c), append(extra, c)
	}
	return all, extra
}

// copyOf returns a list with objects of its own.
func copyOf(list kube.ResourceList) kube.ResourceList {
	c := make(kube.ResourceList, len(list))
	for i, info := range list {
		c[i] = new(*info)
		c[i].Object = info.Object.DeepCopyObject()
	}
	return c
}

// union returns an object that has every field of info's object and of other. Helm's
// patch removes what it compares with and the target lacks, so that all is removed which either
// added. For kinds that the client knows, the values come from what is in the cluster;
// for others, and those are compared by value, a value that differs is one that no
// target has, so that the target's is sent.
func union(info *resource.Info, other runtime.Object) runtime.Object {
	a, okA := info.Object.(*unstructured.Unstructured)
	b, okB := other.(*unstructured.Unstructured)
	if !okA || !okB {
		return info.Object
	}
	versioned, generic := typed(info)
	if generic {
		object, _ := differing(a.Object, b.Object).(map[string]any)
		return &unstructured.Unstructured{Object: object}
	}
	docA, errA := json.Marshal(a)
	docB, errB := json.Marshal(b)
	doc, err := strategicpatch.StrategicMergePatch(docA, docB, versioned)
	merged := &unstructured.Unstructured{}
	if cmp.Or(errA, errB, err, merged.UnmarshalJSON(doc)) != nil {
		return a
	}
	return merged
}

// typed returns the object of info in its Go type, and whether Helm patches it as one
// whose type it does not know.
func typed(info *resource.Info) (versioned runtime.Object, generic bool) {
	versioned = kube.AsVersioned(info)
	_, unknown := versioned.(runtime.Unstructured)
	_, crd := versioned.(*apiextv1beta1.CustomResourceDefinition)
	return versioned, unknown || crd
}

// neither is a value that no manifest has.
const neither = "\x00"

// differing returns what has the keys of a and b, and neither where they differ.
func differing(a, b any) any {
	x, okA := a.(map[string]any)
	y, okB := b.(map[string]any)
	if !okA && !okB {
		if fmt.Sprint(a) == fmt.Sprint(b) {
			return a
		}
		return neither
	}
	both := map[string]any{}
	for _, key := range slices.Concat(slices.Collect(maps.Keys(x)), slices.Collect(maps.Keys(y))) {
		both[key] = differing(x[key], y[key])
	}
	return both
}
