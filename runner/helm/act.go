package helm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage/driver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// operation carries out one order inside the child.
type operation struct {
	order   order
	cluster *cluster
	client  *client
	out     io.Writer
	line    *line
}

// configuration is Helm's view of the cluster. New revisions get labels.
func (op *operation) configuration(labels map[string]string) *action.Configuration {
	store := *op.cluster.releases
	store.Driver = &stamping{
		Driver: store.Driver, labels: labels,
		before: func() error {
			op.client.touch()
			return fault.Point("helm.record")
		},
		created: func(revision int) {
			op.line.say(word{Created: revision})
			_ = fault.Point(fmt.Sprintf("helm.recorded:%d", revision)) // only kills make sense here
		},
	}
	return &action.Configuration{
		RESTClientGetter: op.cluster.getter,
		KubeClient:       op.client,
		Releases:         &store,
		Log:              op.cluster.log,
		HookOutputFunc:   func(_, _, _ string) io.Writer { return op.out },
	}
}

func (op *operation) run(ctx context.Context) error {
	switch op.order.Op {
	case opUpgrade:
		return op.upgrade(ctx)
	case opRollback:
		return op.rollback(ctx)
	case opUninstall:
		return op.uninstall()
	case opWait:
		return op.wait()
	case opCleanse:
		return op.cleanse(0)
	}
	return fmt.Errorf("unknown order %q", op.order.Op)
}

// upgrade brings the job's release up, as `helm upgrade --install --wait
// --create-namespace` does. Until leave is given it changes nothing.
func (op *operation) upgrade(ctx context.Context) error {
	job, h := op.order.Job, op.order.Job.Helm
	values, err := readValues(job.Release.ValuesFile)
	if err != nil {
		return err
	}
	ch, err := loadChart(job.Release.PayloadDir)
	if err != nil {
		return err
	}
	if ch.Metadata.Deprecated {
		op.cluster.log("WARNING: chart %s is deprecated", ch.Name())
	}
	past, err := op.cluster.readHistory(h.Release)
	if err != nil {
		return err
	}
	current, err := op.currentResources(past)
	if err != nil {
		return err
	}
	newNamespace, err := op.cluster.namespaceMissing(ctx)
	if err != nil {
		return err
	}
	install := past.installs()
	options := chartutil.ReleaseOptions{Name: h.Release, Namespace: h.Namespace, Revision: 1, IsInstall: install, IsUpgrade: !install}
	if last := past.last(); last != nil && !past.neverServed() {
		options.Revision = last.Version + 1
	}
	r, err := op.cluster.render(ch, values, options)
	if err != nil {
		return err
	}
	op.line.confide(secretsOfRelease(r.release))
	if err := op.cluster.build(op.client, r, true, install); err != nil {
		return err
	}
	missing := false
	if install {
		if missing, err = op.cluster.crdsMissing(r); err != nil {
			return err
		}
	}
	labels := releaseLabels(job.Release)
	maps.Copy(labels, taskLabels(job, op.order.Action))
	r.release.Labels = labels
	if err := checkRecord(r.release); err != nil {
		return err
	}
	if err := op.cluster.checkRights(ctx, rightsFor(r, current, h.Namespace, newNamespace, missing)); err != nil {
		return err
	}
	if err := checkOwners(r, current); err != nil {
		return err
	}
	if !past.neverServed() { // what that left is removed first
		if err := op.cluster.checkHooks(op.client, r, install); err != nil {
			return err
		}
	}
	// Rendering changed the chart and the values; the real run starts anew.
	if ch, err = loadChart(job.Release.PayloadDir); err != nil {
		return err
	}
	if values, err = readValues(job.Release.ValuesFile); err != nil {
		return err
	}
	leave := op.line.ask()
	op.client.say(task.PhaseApplying, fmt.Sprintf("applying chart %s-%s", ch.Name(), ch.Metadata.Version))
	rel, err := op.apply(ch, values, labels, leave.Install, newNamespace, missing)
	if err != nil {
		return err
	}
	op.notes(rel)
	return nil
}

// apply is the part of an upgrade that changes the cluster.
func (op *operation) apply(ch *chart.Chart, values map[string]any, labels map[string]string, install, newNamespace, crds bool) (*release.Release, error) {
	job, cfg := op.order.Job, op.configuration(labels)
	timeout := time.Until(op.order.Until)
	if install {
		i := action.NewInstall(cfg)
		i.ReleaseName, i.Namespace = job.Helm.Release, job.Helm.Namespace
		i.CreateNamespace = newNamespace
		i.SkipCRDs = !crds // all are there; it may not even be allowed to look
		i.Replace = true   // after `helm uninstall --keep-history`
		i.Wait, i.Timeout = true, timeout
		i.Description = "Install complete: release " + job.Release.Version
		return i.Run(ch, values)
	}
	u := action.NewUpgrade(cfg)
	u.Install, u.Namespace = true, job.Helm.Namespace
	u.Wait, u.Timeout = true, timeout
	u.ResetValues = true
	u.MaxHistory = job.Helm.HistoryMax
	u.Description = "Upgrade complete: release " + job.Release.Version
	return u.Run(job.Helm.Release, ch, values)
}

// notes prints what the chart has to say to people.
func (op *operation) notes(rel *release.Release) {
	if rel != nil && rel.Info != nil && strings.TrimSpace(rel.Info.Notes) != "" {
		_, _ = fmt.Fprintf(op.out, "NOTES:\n%s\n", strings.TrimSpace(rel.Info.Notes))
	}
}

// currentResources returns the objects of the revision that serves.
func (op *operation) currentResources(past history) (kube.ResourceList, error) {
	rel := past.serving()
	if rel == nil {
		rel = past.last()
	}
	if rel == nil {
		return nil, nil
	}
	return op.resourcesOf(rel)
}

// resourcesOf returns the objects of a revision. Kinds that are gone from the API
// are left out: nothing can be done to them. An API that merely does not answer
// is an error: what is left out may be deleted.
func (op *operation) resourcesOf(rel *release.Release) (kube.ResourceList, error) {
	var list kube.ResourceList
	for _, doc := range sortedDocs(rel.Manifest) {
		found, err := op.client.Build(bytes.NewBufferString(doc), false)
		if unknownKind(err) {
			op.cluster.log("an object of revision %d is passed over: %v", rel.Version, err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for the objects of revision %d: %s", rel.Version, oneLine(err.Error()))
		}
		list = append(list, found...)
	}
	return list, nil
}

// cleanse undoes in the objects what revisions that never came up added to the
// one that serves, leaving out the newest spare of them. Helm would never remove
// it: an upgrade compares with the last revision that was deployed, a rollback
// with the last one recorded, and a rollback that failed is recorded as if it had
// been applied.
func (op *operation) cleanse(spare int) error {
	past, err := op.cluster.readHistory(op.order.Job.Helm.Release)
	if err != nil {
		return err
	}
	serving := past.serving()
	if serving == nil {
		return nil
	}
	failed := slices.DeleteFunc(past, func(rel *release.Release) bool { return rel.Version <= serving.Version })
	failed = failed[:max(0, len(failed)-spare)]
	for _, rel := range slices.Backward(failed) {
		op.cluster.log("undoing what revision %d left, which never came up", rel.Version)
		target, err := op.resourcesOf(serving)
		if err != nil {
			return err
		}
		left, err := op.resourcesOf(rel)
		if err != nil {
			return err
		}
		if err := target.Visit(own(rel)); err != nil {
			return err
		}
		if _, err := op.client.Update(left, target, false); err != nil {
			return fmt.Errorf("undo what revision %d left: %w", rel.Version, err)
		}
	}
	return nil
}

// rollback goes back to a revision, as `helm rollback --wait` does.
func (op *operation) rollback(ctx context.Context) error {
	h := op.order.Job.Helm
	labels := taskLabels(op.order.Job, op.order.Action)
	if op.order.Ask {
		past, err := op.cluster.readHistory(h.Release)
		if err != nil {
			return err
		}
		target := past.newest(func(rel *release.Release) bool { return rel.Version == op.order.Revision })
		if target == nil {
			return fmt.Errorf("revision %d of release %s is gone", op.order.Revision, h.Release)
		}
		current, err := op.currentResources(past)
		if err != nil {
			return err
		}
		r := &rendered{release: target}
		if err := op.cluster.build(op.client, r, false, false); err != nil {
			return err
		}
		if err := op.cluster.checkRights(ctx, rightsFor(r, current, h.Namespace, false, false)); err != nil {
			return err
		}
		op.line.ask()
		op.client.say(task.PhaseApplying, fmt.Sprintf("rolling back to revision %d", op.order.Revision))
	}
	if err := op.cleanse(1); err != nil {
		return err
	}
	target, err := op.cluster.releases.Get(h.Release, op.order.Revision)
	if err != nil {
		return fmt.Errorf("read revision %d: %s", op.order.Revision, oneLine(err.Error()))
	}
	if !ours(target) { // what Helm copied into its labels tells of another revision
		maps.Copy(labels, releaseLabels(deployment.Release{Version: versionOf(target, op.order.Job)}))
	}
	b := action.NewRollback(op.configuration(labels))
	b.Version = op.order.Revision
	b.Wait, b.Timeout = true, time.Until(op.order.Until)
	if op.order.Action != actionRestore { // which may have to be tried again, to the same revision
		b.MaxHistory = h.HistoryMax
	}
	return b.Run(h.Release)
}

// wait waits until the newest revision's objects are ready.
func (op *operation) wait() error {
	past, err := op.cluster.readHistory(op.order.Job.Helm.Release)
	if err != nil {
		return err
	}
	if past.last() == nil {
		return errors.New("the release is gone")
	}
	list, err := op.client.Build(bytes.NewBufferString(past.last().Manifest), false)
	if err != nil {
		return err
	}
	return op.client.Wait(list, time.Until(op.order.Until))
}

// uninstall removes a first installation that failed, its hooks too, and waits
// until it is gone: the next installation would meet objects that are about to go.
func (op *operation) uninstall() error {
	name := op.order.Job.Helm.Release
	past, err := op.cluster.readHistory(name)
	if err != nil || len(past) == 0 {
		return err
	}
	u := action.NewUninstall(op.configuration(nil))
	u.Timeout = time.Until(op.order.Until)
	if _, err := u.Run(name); err != nil {
		// A hook that cannot run must not keep the rest in place.
		op.cluster.log("uninstalling failed: %v; trying without hooks", err)
		u.DisableHooks = true
		if _, err := u.Run(name); err != nil && !errors.Is(err, driver.ErrReleaseNotFound) {
			return err
		}
	}
	for _, rel := range past {
		if err := op.deleteHooks(rel); err != nil {
			return err
		}
	}
	return op.awaitGone(past.last())
}

// awaitGone waits until the objects of rel are gone, those apart that are to be
// kept.
func (op *operation) awaitGone(rel *release.Release) error {
	list, err := op.client.Build(bytes.NewBufferString(rel.Manifest), false)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, kept)
	if op.client.WaitForDelete(list, time.Until(op.order.Until)) == nil {
		return nil
	}
	var left []string
	for _, info := range list {
		if info.Get() == nil {
			left = append(left, describe(info))
		}
	}
	return fmt.Errorf("%s not gone yet, though deleted", strings.Join(left, ", "))
}

// kept reports whether an object is to outlive its release.
func kept(info *resource.Info) bool {
	notes, err := accessor.Annotations(info.Object)
	return err == nil && notes[kube.ResourcePolicyAnno] == kube.KeepPolicy
}

// madeBy reports whether hook h made the object: it may have failed because
// somebody else's was there. The two clocks need not agree to the second.
func madeBy(info *resource.Info, h *release.Hook) bool {
	if info.Get() != nil {
		return false // gone, or not ours to see
	}
	made, err := meta.Accessor(info.Object)
	return err == nil && made.GetCreationTimestamp().After(h.LastRun.StartedAt.Time.Add(-time.Minute))
}

// deleteHooks deletes what the hooks of rel made. Helm leaves it: it serves to
// look into a failure, which has been explained by now.
func (op *operation) deleteHooks(rel *release.Release) error {
	policy := metav1.DeletePropagationBackground
	for _, h := range rel.Hooks {
		if h.LastRun.StartedAt.IsZero() || h.Kind == "CustomResourceDefinition" {
			continue
		}
		list, err := op.client.Build(bytes.NewBufferString(h.Manifest), false)
		if err != nil {
			return fmt.Errorf("remove hook %s: %s", h.Path, oneLine(err.Error()))
		}
		for _, info := range list {
			if kept(info) || !madeBy(info, h) {
				continue
			}
			_, err := resource.NewHelper(info.Client, info.Mapping).DeleteWithOptions(info.Namespace, info.Name, &metav1.DeleteOptions{PropagationPolicy: &policy})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("remove hook %s: %s", describe(info), oneLine(err.Error()))
			}
		}
	}
	return nil
}
