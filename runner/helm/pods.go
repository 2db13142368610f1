package helm

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// problem is what is wrong with a pod, or with an object that has none.
type problem struct {
	severity severity
	sentence string
	// the container whose log tells more, "" for none
	namespace, pod, container string
	previous                  bool // its last run, since it is being restarted
}

// severity is the higher, the likelier a problem is the cause of all others.
type severity int

const (
	severityWaits  severity = iota // has not got that far
	severityObject                 // the object itself reports a failure
	severityNotReady
	severityStuck // cannot start: image, configuration, no node
	severityCrash
)

// quote masks text and makes a short line of it, in this order: half a secret
// would not be found any more.
func (c *cluster) quote(text string) string {
	return task.Shorten(c.report.Line(text), deploy.MaxQuote)
}

// withLogTail adds to a sentence what the container to blame said last.
func (c *cluster) withLogTail(ctx context.Context, sentence string, p *problem) *deploy.Diagnosis {
	d := &deploy.Diagnosis{Cause: sentence}
	if p.container != "" {
		d.Tail = c.tail(ctx, p)
		d.Cause = deploy.SaidLast(sentence, d.Tail)
	}
	return d
}

// problemOf returns what is wrong with an object that is not ready.
func (c *cluster) problemOf(ctx context.Context, o object, r readiness) *problem {
	p := &problem{sentence: fmt.Sprintf("%s %q %s", strings.ToLower(o.kind.Kind), o.name, r.predicate())}
	var pods []corev1.Pod
	switch {
	case o.kind.GroupKind() == podKind:
		if pod, err := c.client.CoreV1().Pods(o.namespace).Get(ctx, o.name, metav1.GetOptions{}); err == nil {
			pods = []corev1.Pod{*pod}
		}
	case r.pods != nil:
		if list, err := c.client.CoreV1().Pods(o.namespace).List(ctx, metav1.ListOptions{LabelSelector: r.pods.String()}); err == nil {
			pods = list.Items
		}
	}
	var way string
	if o.kind.GroupKind() == statefulSetKind {
		if pod := c.blockingPod(ctx, o); pod != nil {
			pods = []corev1.Pod{*pod}
			way = fmt.Sprintf("; it is of an earlier revision, and nothing is updated until it is gone: kubectl delete pod %s --namespace %s", pod.Name, pod.Namespace)
		}
	}
	if worst := c.worstProblem(ctx, pods); worst != nil {
		worst.sentence = p.sentence + ": " + worst.sentence + way
		return worst
	}
	why := r.why
	if why == "" {
		why = c.warning(ctx, o.namespace, o.kind.Kind, o.name)
	}
	if why != "" {
		p.severity = severityObject
		p.sentence += ": " + c.quote(why)
	}
	return p
}

// worstProblem returns the most severe problem of the pods, nil when none has any.
func (c *cluster) worstProblem(ctx context.Context, pods []corev1.Pod) *problem {
	var worst *problem
	for i := range pods {
		if p := c.assess(&pods[i]); p != nil && (worst == nil || p.severity > worst.severity) {
			worst = p
		}
	}
	if worst == nil {
		return nil
	}
	worst.sentence = fmt.Sprintf("pod %q %s", worst.pod, worst.sentence)
	if worst.severity < severityCrash {
		w := c.warning(ctx, worst.namespace, "Pod", worst.pod)
		_, text, _ := strings.Cut(w, ": ") // the scheduler says the same twice
		if w != "" && (text == "" || !strings.Contains(worst.sentence, text)) {
			worst.sentence += ": " + c.quote(w)
		}
	}
	return worst
}

// assess returns what is wrong with a pod, nil when nothing is.
func (c *cluster) assess(pod *corev1.Pod) *problem {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase != corev1.PodFailed && podReady(pod) {
		return nil
	}
	p := &problem{severity: severityWaits, sentence: "is not ready", namespace: pod.Namespace, pod: pod.Name}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if inner := c.assessContainer(s); inner != nil && inner.severity > p.severity {
			inner.namespace, inner.pod = pod.Namespace, pod.Name
			p = inner
		}
	}
	if p.severity > severityWaits {
		return p
	}
	if pod.Status.Phase == corev1.PodFailed {
		p.severity, p.sentence = severityCrash, "failed"
		if pod.Status.Reason != "" {
			p.sentence = fmt.Sprintf("failed (%s)", pod.Status.Reason)
		}
		if pod.Status.Message != "" {
			p.sentence += ": " + c.quote(pod.Status.Message)
		}
	}
	for _, cond := range pod.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse && p.severity < severityStuck {
			p.severity, p.sentence = severityStuck, "cannot be scheduled: "+c.quote(cond.Message)
		}
	}
	return p
}

// assessContainer returns what is wrong with a container, nil when it runs well
// or ended as it should.
func (c *cluster) assessContainer(s corev1.ContainerStatus) *problem {
	p := &problem{container: s.Name}
	ended, last := s.State.Terminated, s.LastTerminationState.Terminated
	switch waiting := s.State.Waiting; {
	case waiting != nil && last != nil:
		p.severity, p.previous = severityCrash, true
		p.sentence = fmt.Sprintf("container %q keeps ending: %s, restarted %d times", s.Name, c.exit(last), s.RestartCount)
	case waiting != nil && waiting.Reason != "" && waiting.Reason != "ContainerCreating" && waiting.Reason != "PodInitializing":
		p.severity, p.container = severityStuck, ""
		p.sentence = fmt.Sprintf("container %q cannot start (%s)", s.Name, waiting.Reason)
		if waiting.Message != "" {
			p.sentence += ": " + c.quote(waiting.Message)
		}
	case ended != nil && ended.ExitCode != 0:
		p.severity = severityCrash
		p.sentence = fmt.Sprintf("container %q ended: %s", s.Name, c.exit(ended))
	case s.State.Running != nil && !s.Ready:
		p.severity = severityNotReady
		p.sentence = fmt.Sprintf("container %q runs but is not ready", s.Name)
		if last != nil {
			p.sentence += fmt.Sprintf(" (restarted %d times, last time: %s)", s.RestartCount, c.exit(last))
		}
	default:
		return nil
	}
	return p
}

// running returns the container that still runs in the newest of the pods, as the
// problem of a hook that should have ended; nil when there is none.
func running(pods []corev1.Pod) *problem {
	var newest *problem
	var since metav1.Time
	for _, pod := range pods {
		for _, s := range pod.Status.ContainerStatuses {
			if s.State.Running != nil && (newest == nil || since.Before(&pod.CreationTimestamp)) {
				since = pod.CreationTimestamp
				newest = &problem{
					sentence:  fmt.Sprintf("pod %q container %q still runs", pod.Name, s.Name),
					namespace: pod.Namespace, pod: pod.Name, container: s.Name,
				}
			}
		}
	}
	return newest
}

// podReady reports whether p has said that it is ready.
func podReady(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// exit says how a container ended.
func (c *cluster) exit(s *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("exit code %d", s.ExitCode)
	if s.Reason != "" && s.Reason != "Error" && s.Reason != "Completed" {
		text += " (" + s.Reason + ")"
	}
	if s.Message != "" {
		text += ", " + c.quote(s.Message)
	}
	return text
}

// warning returns the newest warning among the events about an object.
func (c *cluster) warning(ctx context.Context, namespace, kind, name string) string {
	list, err := c.client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.kind": kind, "involvedObject.name": name}.String(),
	})
	if err != nil {
		return ""
	}
	when := func(e corev1.Event) time.Time {
		latest := e.CreationTimestamp.Time
		for _, t := range []time.Time{e.FirstTimestamp.Time, e.LastTimestamp.Time, e.EventTime.Time} {
			if t.After(latest) {
				latest = t
			}
		}
		if e.Series != nil && e.Series.LastObservedTime.After(latest) {
			latest = e.Series.LastObservedTime.Time
		}
		return latest
	}
	warnings := slices.DeleteFunc(list.Items, func(e corev1.Event) bool { return e.Type != corev1.EventTypeWarning })
	if len(warnings) == 0 {
		return ""
	}
	e := slices.MaxFunc(warnings, func(a, b corev1.Event) int {
		return cmp.Or(when(a).Compare(when(b)), strings.Compare(a.ResourceVersion, b.ResourceVersion))
	})
	return deploy.OneLine(e.Reason + ": " + e.Message)
}

// tail returns the last lines of a container's log, or none.
func (c *cluster) tail(ctx context.Context, p *problem) []string {
	if lines := c.logOf(ctx, p, p.previous); len(lines) > 0 {
		return lines
	}
	return c.logOf(ctx, p, !p.previous)
}

func (c *cluster) logOf(ctx context.Context, p *problem, previous bool) []string {
	n := int64(deploy.TailLines)
	log, err := c.client.CoreV1().Pods(p.namespace).GetLogs(p.pod, &corev1.PodLogOptions{
		Container: p.container, TailLines: &n, Previous: previous,
	}).Stream(ctx)
	if err != nil {
		return nil
	}
	defer log.Close()
	text, err := io.ReadAll(io.LimitReader(log, deploy.MaxTailBytes))
	lines := c.report.Tail(string(text), err != nil || len(text) == deploy.MaxTailBytes)
	if err != nil {
		lines = append(lines, "(the log could not be read on)")
	}
	return lines
}
