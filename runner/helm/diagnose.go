package helm

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/release"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// diagnosisTimeout bounds how long pods and events are asked for a cause.
const diagnosisTimeout = 20 * time.Second

// Diagnose finds out which pod, hook or object is to blame, and what it said last.
func (b *backend) Diagnose(ctx context.Context, err error) deploy.Diagnosis {
	if b.restoring {
		return b.diagnoseRestore(ctx, err)
	}
	f := failureOf(err)
	now, readErr := b.awaitHistory(ctx)
	if readErr != nil {
		return b.diagnosis(ctx, err, nil)
	}
	failed := now.madeSince(b.before, *b.job)
	if failed == nil && f.revision != 0 {
		failed = now.last() // that Confirm found, perhaps under an earlier claim's token
	}
	if f.killed && !f.late && failed != nil && failed.Info.Status == release.StatusDeployed {
		return deploy.Diagnosis{Up: &deploy.Applied{Changed: true, Revision: failed.Version, Detail: asRevision(failed.Version)}}
	}
	suspect := failed
	if !f.late {
		suspect = nil // err says it all
	}
	d := b.diagnosis(ctx, err, suspect)
	if failed != nil {
		b.failed = failed
	}
	b.why = deploy.Sentence(*b.job, d)
	return d
}

// diagnoseRestore finds out why what served before did not come up any more, and
// frees the release for the next deployment.
func (b *backend) diagnoseRestore(ctx context.Context, err error) deploy.Diagnosis {
	now, readErr := b.awaitHistory(ctx)
	if readErr != nil {
		return b.diagnosis(ctx, err, nil)
	}
	suspect := now.last()
	if suspect != nil && !isRestore(suspect) {
		suspect = nil
	}
	d := b.diagnosis(ctx, err, suspect)
	if before := failureOf(err).before; before != nil { // it took the time that this try lacked
		d.Cause = strings.TrimSuffix(b.report.Line(before.Error())+"; then "+d.Cause, "; then ")
	}
	why := d.Cause
	if why == "" {
		why = err.Error()
	}
	if err := b.cluster.markFailed(now, "restoring failed: "+why); err != nil {
		b.report.Note("%v", err)
	}
	return d
}

// diagnosis is that of err, or of a revision that is not ready, unless that is nil.
func (b *backend) diagnosis(ctx context.Context, err error, suspect *release.Release) deploy.Diagnosis {
	f := failureOf(err)
	found := f.hook
	if found == nil && suspect != nil {
		found = b.cluster.diagnoseRelease(ctx, suspect)
	}
	switch {
	case found != nil:
		return deploy.Diagnosis{Late: f.late, Cause: b.report.Line(found.Cause), Tail: found.Tail}
	case deploy.IsLate(err):
		return deploy.Diagnosis{Late: true}
	default:
		return deploy.Diagnosis{Late: f.late, Cause: b.report.Line(err.Error())}
	}
}

// diagnoseRelease says why rel did not come up in time; nil when nothing is seen
// to be wrong.
func (c *cluster) diagnoseRelease(ctx context.Context, rel *release.Release) *deploy.Diagnosis {
	for _, h := range rel.Hooks {
		o, ok := objectOf(h.Manifest, rel.Namespace)
		if !ok || h.LastRun.Phase != release.HookPhaseRunning || !c.hookRuns(ctx, o) {
			continue
		}
		d := c.diagnoseHook(ctx, o)
		if d == nil {
			d = &deploy.Diagnosis{Cause: "nothing is known about its pods"}
		}
		d.Cause = fmt.Sprintf("hook %s was not done in time: %s", o, d.Cause)
		return d
	}
	return c.diagnoseObjects(ctx, watchedIn(rel.Manifest, rel.Namespace))
}

// hookRuns reports whether a hook has not come to its end. The record says so of
// every one since it was written last, also of those that were done by then.
func (c *cluster) hookRuns(ctx context.Context, o object) bool {
	switch o.kind.Kind {
	case "Job":
		j, err := c.client.BatchV1().Jobs(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
		return err == nil && j.Status.CompletionTime == nil || apierrors.IsForbidden(err)
	case "Pod":
		p, err := c.client.CoreV1().Pods(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
		return err == nil && p.Status.Phase != corev1.PodSucceeded || apierrors.IsForbidden(err)
	}
	return false
}

// diagnoseObjects finds what of objects is to blame, and what it said last; nil
// when nothing is seen to be wrong. It must come before anything is rolled back:
// that removes the pods.
func (c *cluster) diagnoseObjects(ctx context.Context, objects []object) *deploy.Diagnosis {
	ctx, cancel := context.WithTimeout(ctx, diagnosisTimeout)
	defer cancel()
	var worst *problem
	var sentences []string
	for _, o := range objects {
		r, err := c.readinessOf(ctx, o)
		if err != nil || r.ready {
			continue
		}
		p := c.problemOf(ctx, o, r)
		sentences = append(sentences, p.sentence)
		if worst == nil || p.severity > worst.severity {
			worst = p
		}
	}
	if worst == nil {
		return nil
	}
	// The worst first: the rest may only wait for it.
	i := slices.Index(sentences, worst.sentence)
	sentences = slices.Insert(slices.Delete(sentences, i, i+1), 0, worst.sentence)
	return c.withLogTail(ctx, strings.Join(sentences[:min(len(sentences), 3)], "; "), worst)
}

// diagnoseHook says what is wrong with the pods of a hook; nil when nothing is
// seen to be wrong.
func (c *cluster) diagnoseHook(ctx context.Context, o object) *deploy.Diagnosis {
	ctx, cancel := context.WithTimeout(ctx, diagnosisTimeout)
	defer cancel()
	options := metav1.ListOptions{LabelSelector: "job-name=" + o.name}
	if o.kind.Kind == "Pod" {
		options = metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", o.name).String()}
	}
	list, err := c.client.CoreV1().Pods(o.namespace).List(ctx, options)
	if err != nil {
		return nil
	}
	p := c.worstProblem(ctx, list.Items)
	if p != nil {
		return c.withLogTail(ctx, p.sentence, p)
	}
	if warning := c.warning(ctx, o.namespace, o.kind.Kind, o.name); warning != "" {
		return &deploy.Diagnosis{Cause: c.quote(warning)}
	}
	if p := running(list.Items); p != nil {
		return c.withLogTail(ctx, p.sentence, p)
	}
	return nil
}
