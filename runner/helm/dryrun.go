package helm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	jsonpatch "github.com/evanphx/json-patch"
	"golang.org/x/sync/errgroup"
	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/cli-runtime/pkg/resource"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

const (
	// parallelDryRuns is how many objects are tried at a time.
	parallelDryRuns = 8
	// dryRunTime bounds all of them. What was not answered by then is found out when
	// it is applied.
	dryRunTime = 30 * time.Second
	// maxRefusedObjects is how many refused objects a sentence names.
	maxRefusedObjects = 3
	// maxRefusal bounds what it quotes for all of them, in bytes.
	maxRefusal = deploy.MaxCause - 400
)

// rehearsal asks the API, by a dry run of each request that Helm will send, whether
// it would take what a release is about to change. Helm finds out only behind the
// maintenance page, half-way through.
type rehearsal struct {
	cluster  *cluster
	release  *release.Release
	targets  kube.ResourceList
	compared kube.ResourceList // what Helm compares with
	fresh    bool              // what is there is removed before
	adopts   bool              // what exists, but not in compared, is taken to be as it should
	makes    []string          // namespaces that are made before

	widened kube.ResourceList // compared, and what failed revisions left
	hooks   kube.ResourceList // that are made on the way
	// makesPods tells in which namespaces a pod may be tried.
	makesPods map[string]bool
	context   surroundings
	own       *ownWorkload
}

// rehearse has the API try what a release would change: the objects of r, compared with
// those of the revision compared, and the hooks of the given events, of which the
// first run before.
func (e *executor) rehearse(ctx context.Context, r *rehearsal, past history, compared *release.Release, before, after release.HookEvent) error {
	began := time.Now()
	r.cluster = e.cluster
	r.targets = copyOf(r.targets)
	if err := r.targets.Visit(setOwnership(r.release)); err != nil {
		return err
	}
	r.widened = r.compared
	if e.client.leftovers = e.leftovers(past, compared); len(e.client.leftovers) > 0 && !r.fresh {
		r.widened, _ = e.client.withLeftovers(r.compared)
	}
	var early []*release.Hook
	for _, h := range r.release.Hooks {
		first := slices.Contains(h.Events, before)
		if !first && !slices.Contains(h.Events, after) {
			continue
		}
		if first {
			early = append(early, h)
		}
		list, err := e.client.Client.Build(bytes.NewBufferString(h.Manifest), false)
		if err == nil { // otherwise of a kind that a template may bring
			r.hooks = append(r.hooks, list...)
		}
	}
	r.context = surroundingsOf(r.targets, r.hooks, r.widened, early)
	r.context.frees = r.fresh
	r.own = r.cluster.findOwnWorkload(ctx, e.command.Job.Helm)
	for _, info := range r.widened {
		if r.own.is(info) && r.targets.Get(info) == nil {
			r.cluster.log("WARNING: the release no longer has %s, in which this agent runs: it ends with this deployment", describe(info))
		}
	}
	for _, ns := range r.makes {
		r.context.namespaces[ns] = true
	}
	err := r.run(ctx)
	e.cluster.log("the API was asked about %d objects in %d ms", len(r.targets)+len(r.hooks), time.Since(began).Milliseconds())
	return err
}

// run tries every object and returns an error that names those which the API is
// sure to refuse. Whatever is not sure passes: what Helm would bring up must not be
// refused here.
func (r *rehearsal) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dryRunTime)
	defer cancel()
	objects := slices.Concat(r.targets, r.hooks)
	tried := r.tried(objects)
	r.makesPods = r.cluster.podNamespaces(ctx, objects)
	found := make([]error, len(objects))
	var trying errgroup.Group
	trying.SetLimit(parallelDryRuns)
	for i, info := range objects {
		hook := i >= len(r.targets)
		kind := info.Mapping.GroupVersionKind
		if info.Name == "" || !tried[kind] || r.context.kinds[kind.GroupKind()] {
			continue
		}
		trying.Go(func() error {
			found[i] = r.try(ctx, info, hook)
			return nil
		})
	}
	_ = trying.Wait() // no try returns an error
	return r.refusal(objects, found)
}

// refusal returns an error that names the objects for which the API was found to
// refuse them, nil without any.
func (r *rehearsal) refusal(objects kube.ResourceList, found []error) error {
	refused := len(found)
	for _, err := range found {
		if err == nil {
			refused--
		}
	}
	if refused == 0 {
		return nil
	}
	named := min(refused, maxRefusedObjects)
	var texts []string
	for i, err := range found {
		if err != nil && len(texts) < named {
			text := withoutDumps(r.cluster.report.Line(err.Error()))
			texts = append(texts, describe(objects[i])+": "+task.Shorten(text, maxRefusal/named)+advice(text))
		}
	}
	if more := refused - named; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("the kubernetes API would refuse %s", strings.Join(texts, "; "))
}

// tried returns the kinds for which the API is sure to try a request only. A server
// that is aggregated into it, and knows its own kinds, might carry it out.
func (r *rehearsal) tried(objects kube.ResourceList) map[schema.GroupVersionKind]bool {
	verifier := resource.NewQueryParamVerifierV3(r.cluster.dynamic, r.cluster.client.Discovery().OpenAPIV3(), "dryRun")
	kinds := map[schema.GroupVersionKind]bool{}
	for _, info := range objects {
		kind := info.Mapping.GroupVersionKind
		if _, known := kinds[kind]; !known {
			kinds[kind] = scheme.Scheme.IsGroupRegistered(kind.Group) || verifier.HasSupport(kind) == nil
		}
	}
	return kinds
}

// try returns why the API is sure to refuse an object, nil when it is not.
func (r *rehearsal) try(ctx context.Context, info *resource.Info, hook bool) error {
	live, err := read(ctx, info)
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return nil
	case err != nil || hook || r.fresh || goes(live):
		applied, err := tryCreate(ctx, info)
		if err != nil || hook {
			return r.sure(err, info, hook, false)
		}
		return r.tryPod(ctx, info, applied, nil)
	}
	original := r.widened.Get(info)
	applied, err := r.tryPatch(ctx, info, original, live)
	if plain := r.compared.Get(info); err != nil && original != plain {
		applied, err = r.tryPatch(ctx, info, plain, live) // as the client does
	}
	if err == nil {
		if err := r.replacesOwnPod(info, applied, live); err != nil {
			return err
		}
		return r.tryPod(ctx, info, applied, live)
	}
	err = r.sure(err, info, hook, true)
	if err != nil && r.context.runs && !apierrors.IsBadRequest(err) {
		// A hook may change what is there, but not what is valid.
		_, err = tryCreate(ctx, info)
		return r.sure(err, info, hook, false)
	}
	return err
}

// sure returns err when the API is sure to answer so again, otherwise nil.
func (r *rehearsal) sure(err error, info *resource.Info, hook, exists bool) error {
	if r.context.refuses(err, info, hook, exists) {
		return err
	}
	return nil
}

// goes reports whether an object is on its way out of the cluster.
func goes(o runtime.Object) bool {
	m, ok := o.(metav1.Object)
	return ok && m.GetDeletionTimestamp() != nil
}

// on completes a request for an object.
func on(r *rest.Request, info *resource.Info) *rest.Request {
	return r.NamespaceIfScoped(info.Namespace, info.Namespaced()).Resource(info.Mapping.Resource.Resource)
}

func read(ctx context.Context, info *resource.Info) (runtime.Object, error) {
	return on(info.Client.Get(), info).Name(info.Name).Do(ctx).Get()
}

// tryCreate returns the object as the API would store it.
func tryCreate(ctx context.Context, info *resource.Info) (runtime.Object, error) {
	options := &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: kube.ManagedFieldsManager}
	return on(info.Client.Post(), info).VersionedParams(options, metav1.ParameterCodec).Body(info.Object).Do(ctx).Get()
}

// tryPatch tries the patch that Helm would send, and returns the object as the API
// would store it.
func (r *rehearsal) tryPatch(ctx context.Context, info, original *resource.Info, live runtime.Object) (runtime.Object, error) {
	from := live
	switch {
	case original != nil:
		from = original.Object
	case r.adopts:
		from = info.Object
	}
	kind, patch, err := patchOf(info, from, live)
	if err != nil || len(patch) == 0 || string(patch) == "{}" {
		return live, nil // Helm has its say about an error
	}
	options := &metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: kube.ManagedFieldsManager}
	return on(info.Client.Patch(kind), info).Name(info.Name).VersionedParams(options, metav1.ParameterCodec).Body(patch).Do(ctx).Get()
}

// patchOf returns the patch that makes info's object of a live one, compared with
// original, as Helm's own client makes it, which keeps that to itself.
func patchOf(info *resource.Info, original, live runtime.Object) (types.PatchType, []byte, error) {
	docs := make([][]byte, 3)
	for i, o := range []runtime.Object{original, info.Object, live} {
		doc, err := json.Marshal(o)
		if err != nil {
			return "", nil, err
		}
		docs[i] = bytes.TrimSpace(doc)
	}
	versioned, generic := typed(info)
	if generic {
		patch, err := jsonpatch.CreateMergePatch(docs[0], docs[1])
		return types.MergePatchType, patch, err
	}
	meta, err := strategicpatch.NewPatchMetaFromStruct(versioned)
	if err != nil {
		return "", nil, err
	}
	patch, err := strategicpatch.CreateThreeWayMergePatch(docs[0], docs[1], docs[2], meta, true)
	return types.StrategicMergePatchType, patch, err
}
