package helm

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"helm.sh/helm/v3/pkg/kube"
	authzv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// parallelReviews is how many questions about permissions are asked at a time.
const parallelReviews = 8

// permission is that to do something to a kind of object.
type permission struct{ group, resource, subresource, namespace, verb string }

// permissions is a set of them.
type permissions map[permission]bool

func (p permissions) require(group, resource, namespace string, verbs ...string) {
	resource, sub, _ := strings.Cut(resource, "/")
	for _, v := range verbs {
		p[permission{group, resource, sub, namespace, v}] = true
	}
}

func (p permissions) requireFor(list kube.ResourceList, verbs ...string) {
	for _, info := range list {
		ns := ""
		if info.Namespaced() {
			ns = info.Namespace
		}
		m := info.Mapping
		p.require(m.Resource.Group, m.Resource.Resource, ns, verbs...)
		switch m.GroupVersionKind.GroupKind().String() {
		case "Deployment.apps":
			p.require("apps", "replicasets", ns, "list") // Helm's wait looks for the new one
		case "ReplicaSet.apps", "ReplicationController":
			p.require("", "pods", ns, "list")
		}
	}
}

// permissionsFor returns what Helm needs to bring up what r holds over the objects of
// current, and to undo it. newNamespace says that it must be created, crds that an
// installation has to bring the chart's own kinds.
func permissionsFor(r *rendered, current kube.ResourceList, namespace string, newNamespace, crds bool) permissions {
	p := permissions{}
	p.require("", "secrets", namespace, "get", "list", "create", "update", "delete") // the records
	p.requireFor(r.targets, "get", "create", "patch", "delete")
	p.requireFor(current, "get", "create", "patch", "delete")
	p.requireFor(r.hooks, "get", "create", "delete")
	for _, info := range r.hooks {
		if k := info.Mapping.GroupVersionKind.Kind; k == "Job" || k == "Pod" {
			p.requireFor(kube.ResourceList{info}, "list", "watch") // until it has ended
		}
	}
	if newNamespace {
		p.require("", "namespaces", "", "create")
	}
	if crds {
		p.require("apiextensions.k8s.io", "customresourcedefinitions", "", "get", "create")
	}
	for _, d := range r.ownKinds {
		ns := namespace
		if d.scope == "Cluster" {
			ns = ""
		}
		p.require(d.group, d.plural, ns, "get", "create", "patch", "delete")
	}
	return p
}

// checkPermissions refuses what the API would forbid in the middle.
func (c *cluster) checkPermissions(ctx context.Context, required permissions) error {
	all, err := c.allowed(ctx, permission{"*", "*", "*", "", "*"})
	var missing []permission
	if err == nil && !all {
		missing, err = c.missing(ctx, required)
	}
	if err != nil {
		return fmt.Errorf("ask the kubernetes API for the agent's rights: %s", deploy.OneLine(err.Error()))
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s may not %s: grant these verbs in a Role, or a ClusterRole for what is cluster-wide",
		c.whoami(ctx), strings.Join(sentences(missing), ", nor "))
}

// missing returns which of the required ones the agent does not have.
func (c *cluster) missing(ctx context.Context, required permissions) ([]permission, error) {
	var (
		mu      sync.Mutex
		missing []permission
		asking  errgroup.Group
	)
	asking.SetLimit(parallelReviews)
	for p := range required {
		asking.Go(func() error {
			ok, err := c.allowed(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && !ok {
				missing = append(missing, p)
			}
			return err
		})
	}
	return missing, asking.Wait()
}

func (c *cluster) allowed(ctx context.Context, p permission) (bool, error) {
	review, err := c.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authzv1.SelfSubjectAccessReview{
		Spec: authzv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authzv1.ResourceAttributes{
			Namespace: p.namespace, Verb: p.verb, Group: p.group, Resource: p.resource, Subresource: p.subresource,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}

// sentences groups missing permissions, as `create, patch deployments.apps in
// namespace "web"`.
func sentences(missing []permission) []string {
	verbs := map[permission][]string{}
	for _, p := range missing {
		verb := p.verb
		p.verb = ""
		verbs[p] = append(verbs[p], verb)
	}
	var texts []string
	for _, p := range slices.SortedFunc(maps.Keys(verbs), func(a, b permission) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.resource, b.resource), cmp.Compare(a.group, b.group), cmp.Compare(a.subresource, b.subresource))
	}) {
		name := p.resource
		if p.group != "" {
			name += "." + p.group
		}
		if p.subresource != "" {
			name += "/" + p.subresource
		}
		where := "cluster-wide"
		if p.namespace != "" {
			where = fmt.Sprintf("in namespace %q", p.namespace)
		}
		slices.Sort(verbs[p])
		texts = append(texts, fmt.Sprintf("%s %s %s", strings.Join(verbs[p], ", "), name, where))
	}
	return texts
}

// namespaceMissing reports whether the namespace must be created. One that may
// not be looked at is taken to exist: an agent with a Role in it cannot see it.
func (c *cluster) namespaceMissing(ctx context.Context) (bool, error) {
	ns, err := c.client.CoreV1().Namespaces().Get(ctx, c.namespace, metav1.GetOptions{})
	switch {
	case err == nil && ns.DeletionTimestamp != nil:
		return false, fmt.Errorf("namespace %q is being deleted: wait until it is gone", c.namespace)
	case err == nil, apierrors.IsForbidden(err):
		return false, nil
	case apierrors.IsNotFound(err):
		return true, nil
	default:
		return false, fmt.Errorf("look for namespace %q: %s", c.namespace, deploy.OneLine(err.Error()))
	}
}
