// Package meter is what the components tell about themselves in numbers: the
// few moments worth counting, as samples. Where a sample goes is the business
// of whoever hands out the Meter; a component that got none measures nothing.
package meter

import (
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Measure names what a sample is about.
type Measure string

// The measures, each with the labels of its samples, in their order, and what
// their value is.
const (
	TaskEnded   Measure = "task_ended"  // kind, status; value without meaning
	PhaseEnded  Measure = "phase_ended" // phase; seconds
	Polled      Measure = "polled"      // seconds since 1970
	Heartbeat   Measure = "heartbeat"   // seconds since 1970
	Queue       Measure = "queue"       // QueueDue or QueueScheduled; tasks
	Mail        Measure = "mail"        // MailSent, MailDeferred or MailFailed; value without meaning
	Maintenance Measure = "maintenance" // 1 while the page is up, else 0
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
	Measure Measure  `json:"measure"`
	Labels  []string `json:"labels,omitempty"`
	Value   float64  `json:"value"`
}

// Meter takes samples; it does not block for long and keeps none of them. A
// nil Meter takes them too, and does nothing.
type Meter func(Sample)

func (m Meter) send(what Measure, value float64, labels ...string) {
	if m != nil {
		m(Sample{Measure: what, Labels: labels, Value: value})
	}
}

func now() float64 { return float64(time.Now().UnixMilli()) / 1000 }

// TaskEnded says that a task ended in a final status.
func (m Meter) TaskEnded(kind task.Kind, status task.Status) {
	label := KindOther
	if kind.Known() {
		label = string(kind)
	}
	m.send(TaskEnded, 1, label, string(status))
}

// PhaseEnded says how long a phase of a run took.
func (m Meter) PhaseEnded(phase task.Phase, took time.Duration) {
	m.send(PhaseEnded, took.Seconds(), string(phase))
}

// Polled says that the database was just asked for tasks, and answered.
func (m Meter) Polled() { m.send(Polled, now()) }

// Queue says how many tasks wait to be claimed.
func (m Meter) Queue(due, scheduled int) {
	m.send(Queue, float64(due), QueueDue)
	m.send(Queue, float64(scheduled), QueueScheduled)
}

// Heartbeat says that a sign of life was just written to the database.
func (m Meter) Heartbeat() { m.send(Heartbeat, now()) }

// Mail says what came of a mail; result is one of the labels of Mail.
func (m Meter) Mail(result string) { m.send(Mail, 1, result) }

// Maintenance says whether the maintenance page is up.
func (m Meter) Maintenance(on bool) {
	value := 0.0
	if on {
		value = 1
	}
	m.send(Maintenance, value)
}

// Stopwatch measures the phases of one run after the other. It belongs to one
// goroutine; only Meter is set by its user.
type Stopwatch struct {
	Meter Meter
	phase task.Phase
	since time.Time
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
		s.Meter.PhaseEnded(s.phase, time.Since(s.since))
	}
	s.phase = ""
}
