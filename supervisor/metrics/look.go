package metrics

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wrktalk/wrktalk-agent/supervisor"
)

// look collects what is looked at when the page is asked for.
type look struct {
	components func() []supervisor.Status
	staging    func() (Staging, error)
	mu         sync.Mutex // one look into the staging directory at a time

	ready, restarts, crashLoop, tasks, bytes *prometheus.Desc
}

func newLook(components func() []supervisor.Status, staging func() (Staging, error)) *look {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
	}
	return &look{
		components: components, staging: staging,
		ready:     desc("component_ready", "1 while the component is ready.", "component"),
		restarts:  desc("component_restarts_total", "How often the component was started again after it died.", "component"),
		crashLoop: desc("component_crash_loop", "1 while the component dies again and again.", "component"),
		tasks:     desc("staging_tasks", "Tasks in the staging directory, by state.", "state"),
		bytes:     desc("staging_bytes", "Size of all files in the staging directory."),
	}
}

// Describe implements prometheus.Collector.
func (l *look) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{l.ready, l.restarts, l.crashLoop, l.tasks, l.bytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (l *look) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, c := range l.components() {
		gauge(l.ready, truth(c.Ready), c.Name)
		gauge(l.crashLoop, truth(c.CrashLoop), c.Name)
		ch <- prometheus.MustNewConstMetric(l.restarts, prometheus.CounterValue, float64(c.Restarts), c.Name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s, err := l.staging()
	if err != nil {
		return
	}
	for state, n := range s.Tasks {
		gauge(l.tasks, float64(n), state)
	}
	if s.Bytes >= 0 {
		gauge(l.bytes, float64(s.Bytes))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
