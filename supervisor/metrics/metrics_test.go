package metrics

import (
	"errors"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
	"github.com/wrktalk/wrktalk-agent/supervisor"
)

// fixture is metrics about parts that the test decides on.
type fixture struct {
	*Metrics
	record     telemetry.Recorder
	components []supervisor.Status
	staging    Staging
	err        error
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{
		components: []supervisor.Status{{Name: "fetcher", Ready: true}, {Name: "runner", Restarts: 3, CrashLoop: true}},
		staging:    Staging{Tasks: map[string]int{"ready": 2, "done": 0}, Bytes: 4096},
	}
	f.Metrics = New(Options{
		Version: "1.2.3", GoVersion: "go1.26",
		Components: func() []supervisor.Status { return f.components },
		Staging:    func() (Staging, error) { return f.staging, f.err },
	})
	f.record = func(s telemetry.Sample) {
		if err := f.Observe(s); err != nil {
			t.Error(err)
		}
	}
	return f
}

func (f *fixture) page(t *testing.T) string {
	t.Helper()
	w := httptest.NewRecorder()
	f.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("the page is %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// want fails unless the page has all the lines.
func (f *fixture) want(t *testing.T, lines ...string) {
	t.Helper()
	page := f.page(t)
	for _, l := range lines {
		if !strings.Contains("\n"+page, "\n"+l+"\n") {
			t.Errorf("the page has no line %q:\n%s", l, page)
		}
	}
}

func TestEverySampleIsKept(t *testing.T) {
	f := newFixture(t)
	f.want(t,
		`wrktalk_agent_tasks_total{kind="rollback",result="failed"} 0`,
		`wrktalk_agent_mail_attempts_total{result="deferred"} 0`,
		`wrktalk_agent_phase_duration_seconds_count{phase="restoring"} 0`,
		`wrktalk_agent_last_poll_timestamp_seconds 0`,
		`wrktalk_agent_build_info{goversion="go1.26",version="1.2.3"} 1`,
	)
	f.record.TaskEnded(task.KindRollback, task.StatusFailed)
	f.record.TaskEnded("reboot", task.StatusFailed)
	f.record.PhaseEnded(task.PhaseRestoring, 90*time.Second)
	f.record.PhaseEnded(task.PhaseDone, time.Second) // a moment
	f.record.Mail(telemetry.MailDeferred)
	f.record.Queue(2, 7)
	f.record.Queue(1, 8)
	f.record.Maintenance(true)
	f.want(t,
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
	if page := f.page(t); strings.Contains(page, `"done"} 1`) {
		t.Error("a moment is measured")
	}
	before := float64(time.Now().Unix())
	f.record.Polled()
	f.record.Heartbeat()
	for _, g := range []string{"last_poll", "heartbeat"} {
		families, err := f.registry.Gather()
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
	f := newFixture(t)
	lines := []string{
		`wrktalk_agent_component_ready{component="fetcher"} 1`,
		`wrktalk_agent_component_ready{component="runner"} 0`,
		`wrktalk_agent_component_restarts_total{component="runner"} 3`,
		`wrktalk_agent_component_crash_loop{component="runner"} 1`,
	}
	f.want(t, append(lines, `wrktalk_agent_staging_tasks{state="ready"} 2`, `wrktalk_agent_staging_bytes 4096`)...)
	f.staging.Bytes = -1
	f.want(t, append(lines, `wrktalk_agent_staging_tasks{state="ready"} 2`)...)
	if page := f.page(t); strings.Contains(page, "staging_bytes") {
		t.Error("bytes that were not counted are on the page")
	}
	f.err = errors.New("gone")
	f.want(t, lines...)
	if page := f.page(t); strings.Contains(page, "staging_tasks") || strings.Contains(page, "staging_bytes") {
		t.Error("a directory that cannot be read is on the page")
	}
}

func TestSamplesThatFitNothingAreRefused(t *testing.T) {
	f := newFixture(t)
	for _, s := range []telemetry.Sample{
		{Metric: "weather"},
		{Metric: telemetry.TaskEnded, Labels: []string{"deploy"}},
		{Metric: telemetry.PhaseEnded, Labels: []string{"staging"}, Value: -1},
		{Metric: telemetry.Heartbeat, Labels: []string{"x"}},
	} {
		if err := f.Observe(s); err == nil {
			t.Errorf("sample %+v is taken", s)
		}
	}
}

func TestPromlint(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(newFixture(t).page(t))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestSamplesAndPagesAtOnce(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				f.record.Mail(telemetry.MailSent)
				f.record.Queue(1, 1)
			}
		})
	}
	for range 2 {
		wg.Go(func() { f.page(t) })
	}
	wg.Wait()
	f.want(t, `wrktalk_agent_mail_attempts_total{result="sent"} 400`)
}
