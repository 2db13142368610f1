package helm

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"helm.sh/helm/v3/pkg/kube"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// movedKinds are the kinds that went to another API group, as helm-mapkubeapis has
// them. All others kept theirs.
var movedKinds = map[schema.GroupKind]string{
	{Group: "extensions", Kind: "Deployment"}:        "apps",
	{Group: "extensions", Kind: "DaemonSet"}:         "apps",
	{Group: "extensions", Kind: "ReplicaSet"}:        "apps",
	{Group: "extensions", Kind: "Ingress"}:           "networking.k8s.io",
	{Group: "extensions", Kind: "NetworkPolicy"}:     "networking.k8s.io",
	{Group: "extensions", Kind: "PodSecurityPolicy"}: "policy",
}

// Build asks the API anew about a kind that it did not have: a template may have
// brought it meanwhile. Of a manifest that was recorded, which is not validated, an
// object whose API version is gone is taken to be of the version that replaced it,
// and passed over where there is none: the cluster cannot hold it any more. Helm
// would refuse every later release (helm#7219).
func (k *client) Build(from io.Reader, validate bool) (kube.ResourceList, error) {
	manifest, err := io.ReadAll(from)
	if err != nil {
		return nil, err
	}
	list, err := k.Client.Build(bytes.NewReader(manifest), validate)
	if unknownKind(err) {
		k.cluster.getter.discovery.Invalidate()
		list, err = k.Client.Build(bytes.NewReader(manifest), validate)
	}
	if !unknownKind(err) || validate {
		return list, err
	}
	list = nil
	for _, doc := range sortedDocs(string(manifest)) {
		found, err := k.Client.Build(bytes.NewBufferString(doc), false)
		if unknownKind(err) {
			found, err = k.buildSuccessor(doc)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// buildSuccessor returns the object of doc in the version that replaced its own,
// nothing when there is none.
func (k *client) buildSuccessor(doc string) (kube.ResourceList, error) {
	o, ok := objectOf(doc, k.cluster.namespace)
	if !ok {
		return nil, nil
	}
	old := o.kind.GroupVersion()
	if err := k.cluster.checkGone(o.kind); err != nil {
		return nil, err
	}
	now, found := k.cluster.successor(o.kind)
	if !found {
		k.tellOnce(task.PhasePreflight, fmt.Sprintf("%s is of API version %s, which the cluster does not have any more, nor another one of its kind: it is passed over", o, old))
		return nil, nil
	}
	var content map[string]any
	if err := yaml.Unmarshal([]byte(doc), &content); err != nil {
		return nil, err
	}
	content["apiVersion"] = now.String()
	mapped, err := yaml.Marshal(content)
	if err != nil {
		return nil, err
	}
	k.tellOnce(task.PhasePreflight, fmt.Sprintf("%s is of API version %s, which the cluster does not have any more: it is taken to be of %s", o, old, now))
	return k.Client.Build(bytes.NewReader(mapped), false)
}

// tellOnce notes text in the timeline, unless it stands there.
func (k *client) tellOnce(phase task.Phase, text string) {
	if !slices.Contains(k.told, text) {
		k.told = append(k.told, text)
		k.report.Event(phase, "%s", text)
	}
}

// checkGone returns an error unless the API says that it does not have the kind: an
// API that merely does not answer has lost nothing.
func (c *cluster) checkGone(kind schema.GroupVersionKind) error {
	list, err := c.client.Discovery().ServerResourcesForGroupVersion(kind.GroupVersion().String())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("ask the kubernetes API for its kinds of version %s: %s", kind.GroupVersion(), deploy.OneLine(err.Error()))
	case slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Kind == kind.Kind }):
		return fmt.Errorf("the kubernetes API does not agree with itself about kind %s of version %s", kind.Kind, kind.GroupVersion())
	}
	return nil
}

// successor returns the version of the API in which a kind lives on.
func (c *cluster) successor(kind schema.GroupVersionKind) (schema.GroupVersion, bool) {
	mapper, err := c.getter.ToRESTMapper()
	if err != nil {
		return schema.GroupVersion{}, false
	}
	group := kind.GroupKind()
	if moved, ok := movedKinds[group]; ok {
		group.Group = moved
	}
	mapping, err := mapper.RESTMapping(group)
	if err != nil {
		return schema.GroupVersion{}, false
	}
	return mapping.GroupVersionKind.GroupVersion(), true
}
