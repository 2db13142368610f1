package helm

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// checkOwners refuses to take over objects that the release does not own: Helm
// would refuse as well, but in the middle. Objects of the serving revision are
// the release's, whatever their labels say.
func checkOwners(r *rendered, current kube.ResourceList) error {
	self := r.release.Namespace + "/" + r.release.Name
	for _, info := range r.targets.Difference(current) {
		live, err := resource.NewHelper(info.Client, info.Mapping).Get(info.Namespace, info.Name)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look for %s: %s", describe(info), deploy.OneLine(err.Error()))
		}
		owner, err := ownerOf(live)
		if err != nil {
			return fmt.Errorf("look for the owner of %s: %w", describe(info), err)
		}
		switch owner {
		case self:
		case "":
			return fmt.Errorf("%s exists and belongs to no Helm release: remove it, or rename it in the chart", describe(info))
		default:
			return fmt.Errorf("%s exists and belongs to release %s: remove it, or rename it in the chart", describe(info), owner)
		}
	}
	return nil
}

// checkHooks refuses hooks that would fail because their object is there already
// and their policy does not remove it first. Helm would find out behind the page,
// and what is there may be somebody else's.
func (c *cluster) checkHooks(client kube.Interface, r *rendered, install bool) error {
	runs := []release.HookEvent{release.HookPreUpgrade, release.HookPostUpgrade}
	if install {
		runs = []release.HookEvent{release.HookPreInstall, release.HookPostInstall}
	}
	for _, h := range r.release.Hooks {
		if len(h.DeletePolicies) == 0 || slices.Contains(h.DeletePolicies, release.HookBeforeHookCreation) || // the default
			!slices.ContainsFunc(h.Events, func(e release.HookEvent) bool { return slices.Contains(runs, e) }) {
			continue
		}
		list, err := client.Build(bytes.NewBufferString(h.Manifest), false)
		if err != nil {
			continue // build has its say about that
		}
		for _, info := range list {
			if info.Get() == nil {
				return fmt.Errorf("hook %s: %s exists already: remove it, or let the hook's helm.sh/hook-delete-policy do so with before-hook-creation", h.Path, describe(info))
			}
		}
	}
	return nil
}

// What Helm writes on each object of a release.
const (
	managedBy       = "app.kubernetes.io/managed-by"
	ownerAnnotation = "meta.helm.sh/release-name"
	ownerNamespace  = "meta.helm.sh/release-namespace"
)

var accessor = meta.NewAccessor()

// setOwnership returns a visitor that marks objects as those of rel, as Helm does.
func setOwnership(rel *release.Release) resource.VisitorFunc {
	return func(info *resource.Info, err error) error {
		if err != nil {
			return err
		}
		labels, err := accessor.Labels(info.Object)
		notes, err2 := accessor.Annotations(info.Object)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		labels, notes = maps.Clone(labels), maps.Clone(notes)
		if labels == nil {
			labels = map[string]string{}
		}
		if notes == nil {
			notes = map[string]string{}
		}
		labels[managedBy], notes[ownerAnnotation], notes[ownerNamespace] = "Helm", rel.Name, rel.Namespace
		return errors.Join(accessor.SetLabels(info.Object, labels), accessor.SetAnnotations(info.Object, notes))
	}
}

// ownerOf returns the namespace and name of the Helm release that owns obj, ""
// for none.
func ownerOf(obj runtime.Object) (string, error) {
	labels, err := accessor.Labels(obj)
	notes, err2 := accessor.Annotations(obj)
	if err := errors.Join(err, err2); err != nil {
		return "", err
	}
	name, ns := notes[ownerAnnotation], notes[ownerNamespace]
	if labels[managedBy] != "Helm" || name == "" {
		return "", nil
	}
	return ns + "/" + name, nil
}

// describe returns kind and name of an object.
func describe(info *resource.Info) string {
	return fmt.Sprintf("%s %q", strings.ToLower(info.Mapping.GroupVersionKind.Kind), info.Name)
}

// existing describes those of list that the API has.
func existing(list kube.ResourceList) []string {
	var names []string
	for _, info := range list {
		if info.Get() == nil {
			names = append(names, describe(info))
		}
	}
	return names
}
