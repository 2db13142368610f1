package metrics

import (
	"errors"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/wrktalk/wrktalk-agent/internal/meter"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/supervisor"
)

// bench is metrics about parts that the test decides on.
type bench struct {
	*Metrics
	meter      meter.Meter
	components []supervisor.Status
	staging    Staging
	err        error
}

func newBench(t *testing.T) *bench {
	b := &bench{
		components: []supervisor.Status{{Name: "fetcher", Ready: true}, {Name: "runner", Restarts: 3, CrashLoop: true}},
		staging:    Staging{Tasks: map[string]int{"ready": 2, "done": 0}, Bytes: 4096},
	}
	b.Metrics = New(Options{
		Version: "1.2.3", GoVersion: "go1.26",
		Components: func() []supervisor.Status { return b.components },
		Staging:    func() (Staging, error) { return b.staging, b.err },
	})
	b.meter = func(s meter.Sample) {
		if err := b.Observe(s); err != nil {
			t.Error(err)
		}
	}
	return b
}

func (b *bench) page(t *testing.T) string {
	t.Helper()
	w := httptest.NewRecorder()
	b.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("the page is %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// want fails unless the page has all the lines.
func (b *bench) want(t *testing.T, lines ...string) {
	t.Helper()
	page := b.page(t)
	for _, l := range lines {
		if !strings.Contains("\n"+page, "\n"+l+"\n") {
			t.Errorf("the page has no line %q:\n%s", l, page)
		}
	}
}

func TestEverySampleIsKept(t *testing.T) {
	b := newBench(t)
	b.want(t,
		`wrktalk_agent_tasks_total{kind="rollback",result="failed"} 0`,
		`wrktalk_agent_mail_attempts_total{result="deferred"} 0`,
		`wrktalk_agent_phase_duration_seconds_count{phase="restoring"} 0`,
		`wrktalk_agent_last_poll_timestamp_seconds 0`,
		`wrktalk_agent_build_info{goversion="go1.26",version="1.2.3"} 1`,
	)
	b.meter.TaskEnded(task.KindRollback, task.StatusFailed)
	b.meter.TaskEnded("reboot", task.StatusFailed)
	b.meter.PhaseEnded(task.PhaseRestoring, 90*time.Second)
	b.meter.PhaseEnded(task.PhaseDone, time.Second) // a moment
	b.meter.Mail(meter.MailDeferred)
	b.meter.Queue(2, 7)
	b.meter.Queue(1, 8)
	b.meter.Maintenance(true)
	b.want(t,
		`wrktalk_agent_tasks_total{kind="rollback",result="failed"} 1`,
		`wrktalk_agent_tasks_total{kind="other",result="failed"} 1`,
		`wrktalk_agent_mail_attempts_total{result="deferred"} 1`,
		`wrktalk_agent_phase_duration_seconds_bucket{phase="restoring",le="60"} 0`,
		`wrktalk_agent_phase_duration_seconds_bucket{phase="restoring",le="120"} 1`,
		`wrktalk_agent_phase_duration_seconds_sum{phase="restoring"} 90`,
		`wrktalk_agent_queue_depth{state="due"} 1`,
		`wrktalk_agent_queue_depth{state="scheduled"} 8`,
		`wrktalk_agent_maintenance 1`,
	)
	if page := b.page(t); strings.Contains(page, `"done"} 1`) {
		t.Error("a moment is measured")
	}
	before := float64(time.Now().Unix())
	b.meter.Polled()
	b.meter.Heartbeat()
	for _, g := range []string{"last_poll", "heartbeat"} {
		families, err := b.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "wrktalk_agent_"+g+"_timestamp_seconds" && f.GetMetric()[0].GetGauge().GetValue() < before {
				t.Errorf("%s was before it happened", g)
			}
		}
	}
}

func TestWhatIsLookedAt(t *testing.T) {
	b := newBench(t)
	lines := []string{
		`wrktalk_agent_component_ready{component="fetcher"} 1`,
		`wrktalk_agent_component_ready{component="runner"} 0`,
		`wrktalk_agent_component_restarts_total{component="runner"} 3`,
		`wrktalk_agent_component_crash_loop{component="runner"} 1`,
	}
	b.want(t, append(lines, `wrktalk_agent_staging_tasks{state="ready"} 2`, `wrktalk_agent_staging_bytes 4096`)...)
	b.staging.Bytes = -1
	b.want(t, append(lines, `wrktalk_agent_staging_tasks{state="ready"} 2`)...)
	if page := b.page(t); strings.Contains(page, "staging_bytes") {
		t.Error("bytes that were not counted are on the page")
	}
	b.err = errors.New("gone")
	b.want(t, lines...)
	if page := b.page(t); strings.Contains(page, "staging_tasks") || strings.Contains(page, "staging_bytes") {
		t.Error("a directory that cannot be read is on the page")
	}
}

func TestSamplesThatFitNothingAreRefused(t *testing.T) {
	b := newBench(t)
	for _, s := range []meter.Sample{
		{Measure: "weather"},
		{Measure: meter.TaskEnded, Labels: []string{"deploy"}},
		{Measure: meter.PhaseEnded, Labels: []string{"staging"}, Value: -1},
		{Measure: meter.Heartbeat, Labels: []string{"x"}},
	} {
		if err := b.Observe(s); err == nil {
			t.Errorf("sample %+v is taken", s)
		}
	}
}

func TestPromlint(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(newBench(t).page(t))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestSamplesAndPagesAtOnce(t *testing.T) {
	b := newBench(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				b.meter.Mail(meter.MailSent)
				b.meter.Queue(1, 1)
			}
		})
	}
	for range 2 {
		wg.Go(func() { b.page(t) })
	}
	wg.Wait()
	b.want(t, `wrktalk_agent_mail_attempts_total{result="sent"} 400`)
}
