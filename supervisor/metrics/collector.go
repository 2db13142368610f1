package metrics

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wrktalk/wrktalk-agent/supervisor"
)

// collector collects what is looked up when the page is asked for.
type collector struct {
	components func() []supervisor.Status
	staging    func() (Staging, error)
	mu         sync.Mutex // one walk through the staging directory at a time

	ready, restarts, crashLoop, tasks, bytes *prometheus.Desc
}

func newCollector(components func() []supervisor.Status, staging func() (Staging, error)) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
	}
	return &collector{
		components: components, staging: staging,
		ready:     desc("component_ready", "1 while the component is ready.", "component"),
		restarts:  desc("component_restarts_total", "How often the component was started again after it died.", "component"),
		crashLoop: desc("component_crash_loop", "1 while the component dies again and again.", "component"),
		tasks:     desc("staging_tasks", "Tasks in the staging directory, by state.", "state"),
		bytes:     desc("staging_bytes", "Size of all files in the staging directory."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.ready, c.restarts, c.crashLoop, c.tasks, c.bytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, status := range c.components() {
		gauge(c.ready, boolValue(status.Ready), status.Name)
		gauge(c.crashLoop, boolValue(status.CrashLoop), status.Name)
		ch <- prometheus.MustNewConstMetric(c.restarts, prometheus.CounterValue, float64(status.Restarts), status.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.staging()
	if err != nil {
		return
	}
	for state, n := range s.Tasks {
		gauge(c.tasks, float64(n), state)
	}
	if s.Bytes >= 0 {
		gauge(c.bytes, float64(s.Bytes))
	}
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
