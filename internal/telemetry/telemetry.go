// Package telemetry is what the components record about themselves in numbers:
// samples of the few metrics that are kept. Where a sample goes is the business of
// whoever hands out the Recorder; a component that got none records nothing.
package telemetry

import (
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Metric names what a sample is about.
type Metric string

// The metrics, each with the labels of its samples, in their order, and the unit
// of their value.
const (
	TaskEnded   Metric = "task_ended"  // kind, status; no unit
	PhaseEnded  Metric = "phase_ended" // phase; seconds
	Polled      Metric = "polled"      // seconds since 1970
	Heartbeat   Metric = "heartbeat"   // seconds since 1970
	Queue       Metric = "queue"       // QueueDue or QueueScheduled; tasks
	Mail        Metric = "mail"        // MailSent, MailDeferred or MailFailed; no unit
	Maintenance Metric = "maintenance" // 1 while the page is up, else 0
)

// The labels of Queue.
const (
	QueueDue       = "due"       // could begin now
	QueueScheduled = "scheduled" // waits for its time
)

// The labels of Mail.
const (
	MailSent     = "sent"     // the server took it
	MailDeferred = "deferred" // an attempt failed; another one follows
	MailFailed   = "failed"   // given up
)

// KindOther stands for every kind of task that is not known: the text of a row
// must not make new series.
const KindOther = "other"

// Sample is one number and what it is about.
type Sample struct {
	Metric Metric   `json:"measure"`
	Labels []string `json:"labels,omitempty"`
	Value  float64  `json:"value"`
}

// Recorder takes samples; it does not block for long and keeps none of them. A
// nil Recorder takes them too, and does nothing.
type Recorder func(Sample)

func (r Recorder) record(metric Metric, value float64, labels ...string) {
	if r != nil {
		r(Sample{Metric: metric, Labels: labels, Value: value})
	}
}

func now() float64 { return float64(time.Now().UnixMilli()) / 1000 }

// TaskEnded says that a task ended in a final status.
func (r Recorder) TaskEnded(kind task.Kind, status task.Status) {
	label := KindOther
	if kind.Known() {
		label = string(kind)
	}
	r.record(TaskEnded, 1, label, string(status))
}

// PhaseEnded says how long a phase of a run took.
func (r Recorder) PhaseEnded(phase task.Phase, took time.Duration) {
	r.record(PhaseEnded, took.Seconds(), string(phase))
}

// Polled says that the database was just asked for tasks, and answered.
func (r Recorder) Polled() { r.record(Polled, now()) }

// Queue says how many tasks wait to be claimed.
func (r Recorder) Queue(due, scheduled int) {
	r.record(Queue, float64(due), QueueDue)
	r.record(Queue, float64(scheduled), QueueScheduled)
}

// Heartbeat says that a sign of life was just written to the database.
func (r Recorder) Heartbeat() { r.record(Heartbeat, now()) }

// Mail says what came of a mail; result is one of the labels of Mail.
func (r Recorder) Mail(result string) { r.record(Mail, 1, result) }

// Maintenance says whether the maintenance page is up.
func (r Recorder) Maintenance(on bool) {
	value := 0.0
	if on {
		value = 1
	}
	r.record(Maintenance, value)
}

// Stopwatch times the phases of one run after the other. It belongs to one
// goroutine; only Metrics is set by its user.
type Stopwatch struct {
	Metrics Recorder
	phase   task.Phase
	since   time.Time
}

// Enter ends the phase the run was in and begins another; the same one goes on.
func (s *Stopwatch) Enter(phase task.Phase) {
	if phase == s.phase {
		return
	}
	s.Stop()
	s.phase, s.since = phase, time.Now()
}

// Stop ends the phase the run was in.
func (s *Stopwatch) Stop() {
	if s.phase != "" {
		s.Metrics.PhaseEnded(s.phase, time.Since(s.since))
	}
	s.phase = ""
}
