package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// monitoring asks the reference's four queries, each as it stands there, in one
// statement: so all of them are answered about the same moment.
const monitoring = `select json_build_object(
	'now', extract(epoch from now()),
	'pending', (select coalesce(json_agg(q), '[]') from (
		SELECT id, type, execute_after, created_at
		FROM agent_task
		WHERE status = 'pending'
		ORDER BY execute_after) q),
	'heartbeats', (select coalesce(json_agg(json_build_object('id', q.id, 'beat', extract(epoch from q.last_heartbeat),
			'age', extract(epoch from q.time_since_heartbeat))), '[]') from (
		SELECT id, status, last_heartbeat,
		       NOW() - last_heartbeat as time_since_heartbeat
		FROM agent_task
		WHERE status = 'inProgress') q),
	'artifacts', (select coalesce(json_agg(q), '[]') from (
		SELECT release_version, chart_type, is_current, is_previous, applied_at
		FROM release_artifact
		WHERE is_current = TRUE OR is_previous = TRUE) q),
	'polls', (select json_agg(json_build_object('at', extract(epoch from q.last_agent_poll), 'age', extract(epoch from q.time_since_poll))) from (
		SELECT last_agent_poll, NOW() - last_agent_poll as time_since_poll
		FROM deployment_config) q),
	'ended', (select coalesce(json_agg(id), '[]') from agent_task where status in ('completed', 'failed')))`

// moment is what they answer.
type moment struct {
	Now        float64
	Pending    []struct{ ID string }
	Heartbeats []struct {
		ID   string
		Beat *float64
		Age  *float64
	}
	Artifacts []struct {
		Version  string `json:"release_version"`
		Current  bool   `json:"is_current"`
		Previous bool   `json:"is_previous"`
	}
	Polls []struct {
		At  *float64
		Age *float64
	}
	Ended []string
}

func (m moment) flagged() (current, previous string, count int) {
	for _, a := range m.Artifacts {
		if a.Current {
			current += a.Version
		}
		if a.Previous {
			previous += a.Version
		}
	}
	return current, previous, len(m.Artifacts)
}

// At every moment of a run the reference's queries answer truly: a task is
// pending, or in progress and heard of, or ended; one at a time is in progress;
// what serves is flagged from the moment on at which its task has ended; and
// the agent goes on asking for tasks while it deploys.
func TestReferenceQueriesAnswerTrulyAllTheTime(t *testing.T) {
	t.Parallel()
	const (
		interval = 1.0 // of heartbeats and of polls, in seconds, by newWorld
		// slack is for a machine that is busy: still well below the lease, from
		// which on a task counts as abandoned.
		slack = 20.0
	)
	w := newWorld(t)
	image := testenv.AppImage(t, "1.0.0")
	releases := map[string]string{}
	for _, v := range []string{"1.0.0", "2.0.0"} {
		// It becomes healthy after a few heartbeats only.
		releases[v] = w.release(v, compose(image, "environment: {APP_VERSION: "+v+", APP_MODE: late, APP_DELAY: 4s}",
			"healthcheck: {retries: 60}").tarball(t), "")
	}
	first, second := w.ask("deploy", releases["1.0.0"]), w.ask("deploy", releases["2.0.0"])
	w.run()

	var last moment
	beats, polls, samples := map[float64]bool{}, map[float64]bool{}, 0
	began := time.Now()
	for len(last.Ended) < 2 {
		if time.Since(began) > 2*patience {
			t.Fatal("the tasks do not end")
		}
		var m moment
		if err := json.Unmarshal([]byte(w.sql("%s", monitoring)), &m); err != nil {
			t.Fatal(err)
		}
		samples++
		if n := len(m.Pending) + len(m.Heartbeats) + len(m.Ended); n != 2 {
			t.Errorf("%d of 2 tasks are accounted for: %+v", n, m)
		}
		if len(m.Heartbeats) > 1 {
			t.Errorf("two tasks are in progress: %+v", m)
		}
		for _, h := range m.Heartbeats {
			switch {
			case h.Beat == nil || h.Age == nil:
				t.Errorf("task %s is in progress and was never heard of", h.ID)
			case *h.Age > interval+slack:
				t.Errorf("task %s was heard of %.1f s ago, want about %.0f s at most", h.ID, *h.Age, interval)
			default:
				beats[*h.Beat] = true
			}
		}
		current, previous, count := m.flagged()
		wantCurrent, wantPrevious := "", ""
		switch {
		case len(m.Ended) == 1 && m.Ended[0] == first:
			wantCurrent = "1.0.0"
		case len(m.Ended) == 2:
			wantCurrent, wantPrevious = "2.0.0", "1.0.0"
		case len(m.Ended) == 1:
			t.Errorf("task %s ended before the older one", second)
		}
		if current != wantCurrent || previous != wantPrevious || count > 2 {
			t.Errorf("with %d tasks ended, %q is flagged current and %q previous", len(m.Ended), current, previous)
		}
		switch p := m.Polls[0]; {
		case p.At == nil && len(m.Pending) < 2:
			t.Error("a task was taken, yet no agent has ever polled")
		case p.At == nil:
		case *p.Age > interval+slack:
			t.Errorf("the last poll was %.1f s ago, want about %.0f s at most", *p.Age, interval)
		default:
			polls[*p.At] = true
		}
		if l := last.Polls; l != nil && l[0].At != nil && (m.Polls[0].At == nil || *m.Polls[0].At < *l[0].At) {
			t.Error("the last poll went back")
		}
		last = m
		if t.Failed() {
			return
		}
	}
	for _, id := range []string{first, second} {
		if r := w.row(id); r.Status != "completed" {
			t.Errorf("%s", r.Raw)
		}
	}
	// Two claims alone would be two heartbeats, and four polls.
	if len(beats) < 5 || len(polls) < 5 {
		t.Errorf("%d heartbeats and %d polls were seen in %d looks, want at least 5 of each", len(beats), len(polls), samples)
	}
	t.Logf("%d looks saw %d heartbeats and %d polls", samples, len(beats), len(polls))
}
