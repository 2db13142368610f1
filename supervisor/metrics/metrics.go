// Package metrics keeps the agent's metrics for Prometheus. The supervisor
// owns them, because it outlives its components: a counter does not go back
// when the one who counts is restarted. What the components count arrives as
// samples; what lies in the staging directory, and how the components are, is
// looked at when the page is asked for.
//
// Every series whose labels are known beforehand exists from the start with
// the value 0: Prometheus sees no increase in a counter that appears with 1.
package metrics

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
	"github.com/wrktalk/wrktalk-agent/supervisor"
)

const namespace = "wrktalk_agent"

// Staging is what lies in the staging directory.
type Staging struct {
	Tasks map[string]int // by state, every state
	Bytes int64          // of all files; negative when they could not be counted
}

// Options say what the metrics are about. All are needed.
type Options struct {
	Version    string
	GoVersion  string
	Components func() []supervisor.Status // called for each page
	// Staging is called for each page, by one goroutine at a time. While it
	// fails, the page goes without what it tells.
	Staging func() (Staging, error)
}

// buckets fit a phase of a moment, such as verifying, as well as one that uses
// up a timeout of half an hour. In seconds.
var buckets = []float64{0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800}

// phases are those that last and are measured; the others are moments.
var phases = []task.Phase{
	task.PhaseStaging, task.PhaseVerifying, task.PhasePreflight, task.PhaseMaintenance, task.PhasePulling,
	task.PhaseApplying, task.PhaseWaiting, task.PhaseRestoring, task.PhaseRecording, task.PhaseNotifying,
}

// Metrics answers the page /metrics, and takes samples.
type Metrics struct {
	http.Handler
	registry *prometheus.Registry

	tasks     *prometheus.CounterVec
	phases    *prometheus.HistogramVec
	mails     *prometheus.CounterVec
	queue     *prometheus.GaugeVec
	heartbeat prometheus.Gauge
	lastPoll  prometheus.Gauge
	page      prometheus.Gauge
}

// New returns metrics that have seen no sample yet.
func New(o Options) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		tasks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "tasks_total", Help: "Tasks that ended, by kind and result.",
		}, []string{"kind", "result"}),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "phase_duration_seconds", Help: "How long the phases of the runs took.", Buckets: buckets,
		}, []string{"phase"}),
		mails: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "mail_attempts_total",
			Help: "Attempts to send a mail: sent, deferred to another attempt, or failed for good.",
		}, []string{"result"}),
		queue: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Name: "queue_depth",
			Help: "Pending tasks of this target at the last poll, at most 200: due now, or scheduled for later.",
		}, []string{"state"}),
		heartbeat: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "heartbeat_timestamp_seconds",
			Help: "When the database last took a task's heartbeat from this agent; 0 before the first.",
		}),
		lastPoll: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "last_poll_timestamp_seconds",
			Help: "When the database last answered a poll for tasks; 0 before the first.",
		}),
		page: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "maintenance", Help: "1 while the maintenance page is up, whoever put it up.",
		}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "1, with the version of the agent in its labels.",
		ConstLabels: prometheus.Labels{"version": o.Version, "goversion": o.GoVersion},
	})
	info.Set(1)
	for _, kind := range []string{string(task.KindDeploy), string(task.KindRollback), telemetry.KindOther} {
		for _, status := range []task.Status{task.StatusCompleted, task.StatusFailed} {
			m.tasks.WithLabelValues(kind, string(status))
		}
	}
	for _, phase := range phases {
		m.phases.WithLabelValues(string(phase))
	}
	for _, result := range []string{telemetry.MailSent, telemetry.MailDeferred, telemetry.MailFailed} {
		m.mails.WithLabelValues(result)
	}
	for _, state := range []string{telemetry.QueueDue, telemetry.QueueScheduled} {
		m.queue.WithLabelValues(state)
	}
	m.registry.MustRegister(m.tasks, m.phases, m.mails, m.queue, m.heartbeat, m.lastPoll, m.page, info,
		newCollector(o.Components, o.Staging))
	// Nobody compresses a page on loopback, and a compressor takes a megabyte.
	m.Handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{DisableCompression: true, MaxRequestsInFlight: 4})
	return m
}

// Observe takes a sample. Any goroutine may call it. A sample that no metric
// is kept of is an error; phases that are mere moments are passed over.
func (m *Metrics) Observe(s telemetry.Sample) error {
	if want, known := arity[s.Metric]; !known || len(s.Labels) != want || s.Value < 0 {
		return fmt.Errorf("observe %q: %d labels and value %g are none that a metric is kept of", string(s.Metric), len(s.Labels), s.Value)
	}
	switch s.Metric {
	case telemetry.TaskEnded:
		m.tasks.WithLabelValues(s.Labels...).Inc()
	case telemetry.PhaseEnded:
		if slices.Contains(phases, task.Phase(s.Labels[0])) {
			m.phases.WithLabelValues(s.Labels...).Observe(s.Value)
		}
	case telemetry.Mail:
		m.mails.WithLabelValues(s.Labels...).Inc()
	case telemetry.Queue:
		m.queue.WithLabelValues(s.Labels...).Set(s.Value)
	case telemetry.Heartbeat:
		m.heartbeat.Set(s.Value)
	case telemetry.Polled:
		m.lastPoll.Set(s.Value)
	case telemetry.Maintenance:
		m.page.Set(s.Value)
	}
	return nil
}

// arity is how many labels the samples of a metric have.
var arity = map[telemetry.Metric]int{
	telemetry.TaskEnded: 2, telemetry.PhaseEnded: 1, telemetry.Mail: 1, telemetry.Queue: 1,
	telemetry.Heartbeat: 0, telemetry.Polled: 0, telemetry.Maintenance: 0,
}
