package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

var servedLine = regexp.MustCompile(`"msg":"health is served".*"address":"([^"]+)"`)

// address returns where the agent serves its health and metrics: the port it
// was given is in its log.
func (w *world) address() string {
	w.t.Helper()
	var found []string
	w.eventually("the agent serves its health", func() bool {
		found = servedLine.FindStringSubmatch(w.logged())
		return found != nil
	})
	return found[1]
}

// scrape returns the page of metrics and its values by series, labels included.
// The page is served by the supervisor, which may be busy.
func (w *world) scrape() (page string, series map[string]float64) {
	w.t.Helper()
	address := w.address()
	var err error
	w.eventually("the metrics are served", func() bool {
		page, err = httpGet("http://" + address + "/metrics")
		return err == nil
	})
	series = map[string]float64{}
	for line := range strings.Lines(page) {
		if name, value, ok := cutLast(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			if series[name], err = strconv.ParseFloat(value, 64); err != nil {
				w.t.Errorf("line %q: %v", line, err)
			}
		}
	}
	return page, series
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// expect waits until the metrics have the given values.
func (w *world) expect(want map[string]float64) {
	w.t.Helper()
	var differs string
	w.eventually("the metrics are as they should be", func() bool {
		_, series := w.scrape()
		differs = ""
		for name, value := range want {
			if got, ok := series[name]; !ok || got != value {
				differs += name + " is " + strconv.FormatFloat(got, 'g', -1, 64) + "\n"
			}
		}
		return differs == ""
	})
}

// What the metrics say of a run that succeeds and one that fails is true, they
// are clean by promlint, and no counter goes back when a component dies.
func TestMetricsCountWhatHappened(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "WRKTALK_AGENT_HTTP_LISTEN=127.0.0.1:0")
	image := testenv.AppImage(t, "1.0.0")
	w.sql(`create table beats (at timestamptz);
		create function note_beat() returns trigger language plpgsql security definer as $$ begin
			insert into beats values (new.last_heartbeat); return null; end $$;
		create trigger note_beat after update of last_heartbeat on agent_task for each row
			when (new.status = 'inProgress') execute function note_beat()`)
	w.run()
	if _, series := w.scrape(); series[`wrktalk_agent_tasks_total{kind="deploy",result="failed"}`] != 0 {
		t.Error("a failure is counted before anything happened")
	}
	good := w.release("1.0.0", compose(image).tarball(t), "")
	if r := w.deploy(good); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	w.deploy("")
	w.await(w.ask("reboot", good))
	w.sql(`insert into agent_task (type, release_artifact_id, execute_after) values ('deploy', '%s', now() + interval '1 day')`, good)
	w.mails(6)
	w.awaitClean()
	counted := map[string]float64{
		`wrktalk_agent_tasks_total{kind="deploy",result="completed"}`:   1,
		`wrktalk_agent_tasks_total{kind="deploy",result="failed"}`:      1,
		`wrktalk_agent_tasks_total{kind="other",result="failed"}`:       1,
		`wrktalk_agent_tasks_total{kind="rollback",result="completed"}`: 0,
		`wrktalk_agent_mail_attempts_total{result="sent"}`:              6,
		`wrktalk_agent_mail_attempts_total{result="failed"}`:            0,
		`wrktalk_agent_phase_duration_seconds_count{phase="staging"}`:   3,
		`wrktalk_agent_phase_duration_seconds_count{phase="applying"}`:  1,
		`wrktalk_agent_phase_duration_seconds_count{phase="recording"}`: 3,
		`wrktalk_agent_phase_duration_seconds_count{phase="notifying"}`: 3,
		`wrktalk_agent_queue_depth{state="due"}`:                        0,
		`wrktalk_agent_queue_depth{state="scheduled"}`:                  1,
		`wrktalk_agent_staging_bytes`:                                   0,
		`wrktalk_agent_staging_tasks{state="running"}`:                  0,
		`wrktalk_agent_maintenance`:                                     0,
		`wrktalk_agent_component_ready{component="fetcher"}`:            1,
		`wrktalk_agent_component_ready{component="runner"}`:             1,
		`wrktalk_agent_component_ready{component="notifier"}`:           1,
		`wrktalk_agent_component_restarts_total{component="notifier"}`:  0,
	}
	w.expect(counted)

	page, before := w.scrape()
	problems, err := promlint.New(strings.NewReader(page)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
	if !regexp.MustCompile(`wrktalk_agent_build_info\{goversion="go[^"]+",version="[^"]+"\} 1`).MatchString(page) {
		t.Error("the page does not say which build it is about")
	}
	// By the clock of the same host, when the database took a heartbeat last, a claim
	// being the first. The page follows with a delay.
	w.eventually("the page tells the last heartbeat", func() bool {
		_, series := w.scrape()
		beat := series["wrktalk_agent_heartbeat_timestamp_seconds"]
		if w.sql(`select %f > extract(epoch from clock_timestamp())`, beat) == "t" {
			t.Fatalf("the last heartbeat was at %f, which is to come", beat)
		}
		return w.sql(`select %f >= extract(epoch from max(at)) - 0.001 from beats`, beat) == "t"
	})
	poll := before["wrktalk_agent_last_poll_timestamp_seconds"]
	if w.sql(`select %f between extract(epoch from max(completed_at)) and extract(epoch from clock_timestamp()) from agent_task`, poll) != "t" {
		t.Errorf("the last poll was at %f, before the last task ended", poll)
	}

	for _, role := range []string{"fetcher", "runner", "notifier"} {
		if err := syscall.Kill(w.pid(role), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		counted[`wrktalk_agent_component_restarts_total{component="`+role+`"}`] = 1
	}
	w.expect(counted)
	_, after := w.scrape()
	for name, value := range before {
		if counter := strings.Contains(name, "_total") || strings.Contains(name, "_count") || strings.Contains(name, "_bucket") ||
			strings.Contains(name, "_sum") || strings.Contains(name, "timestamp"); counter && after[name] < value {
			t.Errorf("%s went from %g back to %g", name, value, after[name])
		}
	}
	if r := w.deploy(good); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	w.mails(8)
	w.expect(map[string]float64{
		`wrktalk_agent_tasks_total{kind="deploy",result="completed"}`: 2,
		`wrktalk_agent_mail_attempts_total{result="sent"}`:            8,
	})
	w.shipped(page)
}

var (
	metricUse   = regexp.MustCompile(`\b(wrktalk_agent_\w+)(\{[^}]*\})?`)
	labelUse    = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*\\?"`)
	scrapeLabel = []string{"instance", "job"} // what Prometheus adds
)

// shipped checks that the rules and the dashboard speak of metrics and labels
// that exist.
func (w *world) shipped(page string) {
	w.t.Helper()
	labels := map[string][]string{}
	for line := range strings.Lines(page) {
		if use := metricUse.FindStringSubmatch(line); use != nil && !strings.HasPrefix(line, "#") {
			for _, l := range labelUse.FindAllStringSubmatch(use[2], -1) {
				labels[use[1]] = append(labels[use[1]], l[1])
			}
			labels[use[1]] = append(labels[use[1]], scrapeLabel...)
		}
	}
	for _, name := range []string{"../packaging/prometheus/wrktalk-agent.rules.yaml", "../packaging/grafana/wrktalk-agent.json", "../docs/monitoring.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			w.t.Fatal(err)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid(text) {
			w.t.Errorf("%s is no JSON", name)
		}
		uses := metricUse.FindAllSubmatch(text, -1)
		if len(uses) < 10 {
			w.t.Errorf("%s uses %d metrics only", name, len(uses))
		}
		for _, use := range uses {
			metric := string(use[1])
			known, ok := labels[metric]
			if !ok && labels[metric+"_count"] == nil {
				w.t.Errorf("%s uses %s, which there is not", name, metric)
			}
			for _, l := range labelUse.FindAllSubmatch(use[2], -1) {
				if ok && !slices.Contains(known, string(l[1])) {
					w.t.Errorf("%s uses label %s of %s, which there is not", name, l[1], metric)
				}
			}
		}
		for metric := range labels {
			base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(metric, "_bucket"), "_sum"), "_count")
			if strings.HasSuffix(name, ".md") && !bytes.Contains(text, []byte(base)) {
				w.t.Errorf("%s does not explain %s", name, base)
			}
		}
	}
}
