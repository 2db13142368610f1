package helm

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/release"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

const (
	tailLines      = 20
	maxTailBytes   = 256 << 10 // read of a container's log
	maxTailLine    = 1 << 10   // bytes of one line
	maxQuote       = 300       // bytes quoted within a sentence
	explainTimeout = 20 * time.Second
)

// cause is why something did not come up.
type cause struct {
	Sentence string   `json:"sentence"`
	Tail     []string `json:"tail,omitempty"` // of the log of what is to blame
}

// explainRelease says why rel did not come up in time; nil when nothing is seen
// to be wrong.
func (c *cluster) explainRelease(ctx context.Context, rel *release.Release) *cause {
	for _, h := range rel.Hooks {
		o := object{h.Kind, namespaceOf(h.Manifest, rel.Namespace), h.Name}
		if h.LastRun.Phase != release.HookPhaseRunning || !c.hookRuns(ctx, o) {
			continue
		}
		why := c.explainPods(ctx, o)
		if why == nil {
			why = &cause{Sentence: "nothing is known about its pods"}
		}
		why.Sentence = fmt.Sprintf("hook %s was not done in time: %s", o, why.Sentence)
		return why
	}
	return c.explain(ctx, objectsOf(rel.Manifest, rel.Namespace))
}

// hookRuns reports whether a hook has not come to its end. The record says so of
// every one since it was written last, also of those that were done by then.
func (c *cluster) hookRuns(ctx context.Context, o object) bool {
	switch o.kind {
	case "Job":
		j, err := c.client.BatchV1().Jobs(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
		return err == nil && j.Status.CompletionTime == nil || apierrors.IsForbidden(err)
	case "Pod":
		p, err := c.client.CoreV1().Pods(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
		return err == nil && p.Status.Phase != corev1.PodSucceeded || apierrors.IsForbidden(err)
	}
	return false
}

// explain finds what of objects is to blame, and what it said last; nil when
// nothing is seen to be wrong. It must come before anything is rolled back: that
// removes the pods.
func (c *cluster) explain(ctx context.Context, objects []object) *cause {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	var worst *trouble
	var sentences []string
	for _, o := range objects {
		st, err := c.look(ctx, o)
		if err != nil || st.ready {
			continue
		}
		t := c.troubleOf(ctx, o, st)
		sentences = append(sentences, t.sentence)
		if worst == nil || t.rank > worst.rank {
			worst = t
		}
	}
	if worst == nil {
		return nil
	}
	// The worst first: the rest may only wait for it.
	i := slices.Index(sentences, worst.sentence)
	sentences = slices.Insert(slices.Delete(sentences, i, i+1), 0, worst.sentence)
	return c.told(ctx, strings.Join(sentences[:min(len(sentences), 3)], "; "), worst)
}

// explainPods says what went wrong with the pods of a hook.
func (c *cluster) explainPods(ctx context.Context, o object) *cause {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	options := metav1.ListOptions{LabelSelector: "job-name=" + o.name}
	if o.kind == "Pod" {
		options = metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", o.name).String()}
	}
	list, err := c.client.CoreV1().Pods(o.namespace).List(ctx, options)
	if err != nil {
		return nil
	}
	t := c.worstOf(ctx, list.Items)
	if t == nil {
		what := c.warning(ctx, o.namespace, o.kind, o.name)
		if what == "" {
			return nil
		}
		return &cause{Sentence: what}
	}
	return c.told(ctx, t.sentence, t)
}

// told adds what the container to blame said last.
func (c *cluster) told(ctx context.Context, sentence string, t *trouble) *cause {
	out := &cause{Sentence: sentence}
	if t.container != "" {
		out.Tail = c.tail(ctx, t)
	}
	if n := len(out.Tail); n > 0 && !strings.Contains(sentence, out.Tail[n-1]) {
		out.Sentence += fmt.Sprintf(" (it said last: %s)", task.SafeText(oneLine(out.Tail[n-1]), maxQuote))
	}
	return out
}

// trouble is what is wrong with a pod, or with an object that has none.
type trouble struct {
	rank     int // the higher, the likelier the cause of everything else
	sentence string
	// the container whose log tells more, "" for none
	namespace, pod, container string
	previous                  bool // its last run, since it is being restarted
}

// The ranks of troubles.
const (
	rankWaits  = iota // has not got that far
	rankObject        // the object itself reports a failure
	rankNotReady
	rankStuck // cannot start: image, configuration, no node
	rankCrash
)

func (c *cluster) troubleOf(ctx context.Context, o object, st standing) *trouble {
	t := &trouble{sentence: fmt.Sprintf("%s %q is %s", strings.ToLower(o.kind), o.name, st.text)}
	var pods []corev1.Pod
	switch {
	case o.kind == "Pod":
		if p, err := c.client.CoreV1().Pods(o.namespace).Get(ctx, o.name, metav1.GetOptions{}); err == nil {
			pods = []corev1.Pod{*p}
		}
	case st.pods != nil:
		if list, err := c.client.CoreV1().Pods(o.namespace).List(ctx, metav1.ListOptions{LabelSelector: st.pods.String()}); err == nil {
			pods = list.Items
		}
	}
	if worst := c.worstOf(ctx, pods); worst != nil {
		worst.sentence = t.sentence + ": " + worst.sentence
		return worst
	}
	why := st.why
	if why == "" {
		why = c.warning(ctx, o.namespace, o.kind, o.name)
	}
	if why != "" {
		t.rank = rankObject
		t.sentence += ": " + task.SafeText(oneLine(why), maxQuote)
	}
	return t
}

// worstOf returns the trouble of the pod that fares worst, nil when none has any.
func (c *cluster) worstOf(ctx context.Context, pods []corev1.Pod) *trouble {
	var worst *trouble
	for i := range pods {
		if t := judge(&pods[i]); t != nil && (worst == nil || t.rank > worst.rank) {
			worst = t
		}
	}
	if worst == nil {
		return nil
	}
	worst.sentence = fmt.Sprintf("pod %q %s", worst.pod, worst.sentence)
	if worst.rank < rankCrash {
		w := c.warning(ctx, worst.namespace, "Pod", worst.pod)
		_, text, _ := strings.Cut(w, ": ") // the scheduler says the same twice
		if w != "" && (text == "" || !strings.Contains(worst.sentence, text)) {
			worst.sentence += ": " + task.SafeText(w, maxQuote)
		}
	}
	return worst
}

// judge returns what is wrong with a pod, nil when nothing is.
func judge(p *corev1.Pod) *trouble {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase != corev1.PodFailed && podReady(p) {
		return nil
	}
	t := &trouble{rank: rankWaits, sentence: "is not ready", namespace: p.Namespace, pod: p.Name}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if ct := judgeContainer(s); ct != nil && ct.rank > t.rank {
			ct.namespace, ct.pod = p.Namespace, p.Name
			t = ct
		}
	}
	if t.rank > rankWaits {
		return t
	}
	if p.Status.Phase == corev1.PodFailed {
		t.rank, t.sentence = rankCrash, "failed"
		if p.Status.Reason != "" {
			t.sentence = fmt.Sprintf("failed (%s)", p.Status.Reason)
		}
		if p.Status.Message != "" {
			t.sentence += ": " + task.SafeText(oneLine(p.Status.Message), maxQuote)
		}
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse && t.rank < rankStuck {
			t.rank, t.sentence = rankStuck, "cannot be scheduled: "+task.SafeText(oneLine(cond.Message), maxQuote)
		}
	}
	return t
}

// judgeContainer returns what is wrong with a container, nil when it runs well
// or ended as it should.
func judgeContainer(s corev1.ContainerStatus) *trouble {
	t := &trouble{container: s.Name}
	ended, last := s.State.Terminated, s.LastTerminationState.Terminated
	switch waiting := s.State.Waiting; {
	case waiting != nil && last != nil:
		t.rank, t.previous = rankCrash, true
		t.sentence = fmt.Sprintf("container %q keeps ending: %s, restarted %d times", s.Name, exit(last), s.RestartCount)
	case waiting != nil && waiting.Reason != "" && waiting.Reason != "ContainerCreating" && waiting.Reason != "PodInitializing":
		t.rank, t.container = rankStuck, ""
		t.sentence = fmt.Sprintf("container %q cannot start (%s)", s.Name, waiting.Reason)
		if waiting.Message != "" {
			t.sentence += ": " + task.SafeText(oneLine(waiting.Message), maxQuote)
		}
	case ended != nil && ended.ExitCode != 0:
		t.rank = rankCrash
		t.sentence = fmt.Sprintf("container %q ended: %s", s.Name, exit(ended))
	case s.State.Running != nil && !s.Ready:
		t.rank = rankNotReady
		t.sentence = fmt.Sprintf("container %q runs but is not ready", s.Name)
		if last != nil {
			t.sentence += fmt.Sprintf(" (restarted %d times, last time: %s)", s.RestartCount, exit(last))
		}
	default:
		return nil
	}
	return t
}

func exit(s *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("exit code %d", s.ExitCode)
	if s.Reason != "" && s.Reason != "Error" && s.Reason != "Completed" {
		text += " (" + s.Reason + ")"
	}
	if s.Message != "" {
		text += ", " + task.SafeText(oneLine(s.Message), maxQuote)
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
	return oneLine(e.Reason + ": " + e.Message)
}

// tail returns the last lines of a container's log, or none.
func (c *cluster) tail(ctx context.Context, t *trouble) []string {
	read := func(previous bool) []string {
		n := int64(tailLines)
		log, err := c.client.CoreV1().Pods(t.namespace).GetLogs(t.pod, &corev1.PodLogOptions{
			Container: t.container, TailLines: &n, Previous: previous,
		}).Stream(ctx)
		if err != nil {
			return nil
		}
		defer log.Close()
		return lines(log)
	}
	if found := read(t.previous); len(found) > 0 {
		return found
	}
	return read(!t.previous)
}

// lines returns the last lines of what r gives, without empty ones.
func lines(r io.Reader) []string {
	var found []string
	in := bufio.NewReader(io.LimitReader(r, maxTailBytes))
	for {
		l, err := in.ReadString('\n')
		if l = strings.TrimRight(l, "\r\n\t "); l != "" {
			found = append(found, task.SafeText(l, maxTailLine))
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				found = append(found, "(the log could not be read on)")
			}
			return found[max(0, len(found)-tailLines):]
		}
	}
}
