package helm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"
	authzv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/resource"
)

// parallelReviews is how many questions about rights are asked at a time.
const parallelReviews = 8

// right is leave to do something to a kind of object.
type right struct{ group, resource, subresource, namespace, verb string }

// rights is a set of them.
type rights map[right]bool

func (r rights) need(group, resource, namespace string, verbs ...string) {
	resource, sub, _ := strings.Cut(resource, "/")
	for _, v := range verbs {
		r[right{group, resource, sub, namespace, v}] = true
	}
}

func (r rights) needFor(list kube.ResourceList, verbs ...string) {
	for _, info := range list {
		ns := ""
		if info.Namespaced() {
			ns = info.Namespace
		}
		m := info.Mapping
		r.need(m.Resource.Group, m.Resource.Resource, ns, verbs...)
		switch m.GroupVersionKind.GroupKind().String() {
		case "Deployment.apps":
			r.need("apps", "replicasets", ns, "list") // Helm's wait looks for the new one
		case "ReplicaSet.apps", "ReplicationController":
			r.need("", "pods", ns, "list")
		}
	}
}

// rightsFor returns what Helm needs to bring up what r holds over the objects of
// current, and to undo it. newNamespace says that it must be created, crds that an
// installation has to bring the chart's own kinds.
func rightsFor(r *rendered, current kube.ResourceList, namespace string, newNamespace, crds bool) rights {
	need := rights{}
	need.need("", "secrets", namespace, "get", "list", "create", "update", "delete") // the records
	need.needFor(r.targets, "get", "create", "patch", "delete")
	need.needFor(current, "get", "create", "patch", "delete")
	need.needFor(r.hooks, "get", "create", "delete")
	for _, info := range r.hooks {
		if k := info.Mapping.GroupVersionKind.Kind; k == "Job" || k == "Pod" {
			need.needFor(kube.ResourceList{info}, "list", "watch") // until it has ended
		}
	}
	if newNamespace {
		need.need("", "namespaces", "", "create")
	}
	if crds {
		need.need("apiextensions.k8s.io", "customresourcedefinitions", "", "get", "create")
	}
	for _, d := range r.own {
		ns := namespace
		if d.scope == "Cluster" {
			ns = ""
		}
		need.need(d.group, d.plural, ns, "get", "create", "patch", "delete")
	}
	return need
}

// checkRights refuses what the API would forbid half-way.
func (c *cluster) checkRights(ctx context.Context, need rights) error {
	all, err := c.may(ctx, right{"*", "*", "*", "", "*"})
	if err != nil {
		return fmt.Errorf("ask the kubernetes API for the agent's rights: %s", oneLine(err.Error()))
	}
	if all {
		return nil
	}
	missing, err := c.missing(ctx, need)
	if err != nil {
		return fmt.Errorf("ask the kubernetes API for the agent's rights: %s", oneLine(err.Error()))
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s may not %s: grant these verbs in a Role, or a ClusterRole for what is cluster-wide",
		c.whoami(ctx), strings.Join(sentences(missing), ", nor "))
}

// missing returns which of need the agent does not have.
func (c *cluster) missing(ctx context.Context, need rights) ([]right, error) {
	var (
		mu      sync.Mutex
		missing []right
		errs    []error
		wg      sync.WaitGroup
		free    = make(chan struct{}, parallelReviews)
	)
	for r := range need {
		wg.Add(1)
		free <- struct{}{}
		go func() {
			defer wg.Done()
			ok, err := c.may(ctx, r)
			<-free
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else if !ok {
				missing = append(missing, r)
			}
		}()
	}
	wg.Wait()
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return missing, nil
}

func (c *cluster) may(ctx context.Context, r right) (bool, error) {
	review, err := c.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authzv1.SelfSubjectAccessReview{
		Spec: authzv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authzv1.ResourceAttributes{
			Namespace: r.namespace, Verb: r.verb, Group: r.group, Resource: r.resource, Subresource: r.subresource,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}

// sentences groups missing rights: "create, patch deployments.apps in namespace
// "web"".
func sentences(missing []right) []string {
	verbs := map[right][]string{}
	for _, r := range missing {
		verb := r.verb
		r.verb = ""
		verbs[r] = append(verbs[r], verb)
	}
	var texts []string
	for _, r := range slices.SortedFunc(maps.Keys(verbs), func(a, b right) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.resource, b.resource), cmp.Compare(a.group, b.group), cmp.Compare(a.subresource, b.subresource))
	}) {
		name := r.resource
		if r.group != "" {
			name += "." + r.group
		}
		if r.subresource != "" {
			name += "/" + r.subresource
		}
		where := "cluster-wide"
		if r.namespace != "" {
			where = fmt.Sprintf("in namespace %q", r.namespace)
		}
		slices.Sort(verbs[r])
		texts = append(texts, fmt.Sprintf("%s %s %s", strings.Join(verbs[r], ", "), name, where))
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
		return false, fmt.Errorf("look for namespace %q: %s", c.namespace, oneLine(err.Error()))
	}
}

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
			return fmt.Errorf("look for %s: %s", describe(info), oneLine(err.Error()))
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

// What Helm writes on each object of a release.
const (
	managedBy       = "app.kubernetes.io/managed-by"
	ownerAnnotation = "meta.helm.sh/release-name"
	ownerNamespace  = "meta.helm.sh/release-namespace"
)

var accessor = meta.NewAccessor()

// own returns a visitor that marks objects as those of rel, as Helm does.
func own(rel *release.Release) resource.VisitorFunc {
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
