package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// waiting stores a release that never becomes healthy and is never given up: the
// image's own three retries would be over in seconds.
func (w *world) waiting(version string) string {
	w.t.Helper()
	return w.release(version, compose(testenv.AppImage(w.t, "1.1.0"), "environment: {APP_MODE: sick}", "healthcheck: {retries: 100000}").tarball(w.t), "")
}

// must runs a command that has to succeed and returns what it printed.
func (w *world) must(args ...string) string {
	w.t.Helper()
	out, stderr, code := w.command(args...)
	if code != 0 {
		w.t.Fatalf("%v: exit code %d\n%s%s", args, code, out, stderr)
	}
	return out
}

// stream starts a command and returns the lines it prints; the channel is
// closed when the command has ended.
func (w *world) stream(args ...string) <-chan string {
	w.t.Helper()
	cmd := exec.Command(filepath.Join(programs(w.t), "wrktalk-agent"), args...)
	cmd.Env = w.env
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	lines := make(chan string, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			lines <- sc.Text()
		}
		_ = cmd.Wait()
	}()
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	return lines
}

// awaitLine waits for a line that holds text.
func (w *world) awaitLine(lines <-chan string, text string) {
	w.t.Helper()
	var seen []string
	w.eventually("a line with "+text, func() bool {
		select {
		case line, ok := <-lines:
			if !ok {
				w.t.Fatalf("the command ended without saying %q; it said %q", text, seen)
			}
			seen = append(seen, line)
			return strings.Contains(line, text)
		default:
			return false
		}
	})
}

// An operator watches a deployment, cancels it in the middle, and the release
// that served before serves again.
func TestOperatorFollowsAndCancelsARunningTask(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run()
	good := w.release("1.0.0", compose(testenv.AppImage(t, "1.0.0")).tarball(t), "")
	if r := w.deploy(good); r.Status != "completed" {
		t.Fatalf("%s", r.Raw)
	}
	w.awaitClean()
	id := w.ask("deploy", w.waiting("1.1.0"))
	w.awaitState(id, "waiting")

	lines := w.stream("logs", "--follow") // no name: the one in flight
	w.awaitLine(lines, w.project)
	if r := w.row(id); r.Status != "inProgress" {
		t.Errorf("the log was not shown while it was written: %s", r.Raw)
	}
	if out := w.must("logs", id[:8]); !strings.Contains(out, w.project) {
		t.Errorf("logs without --follow shows %q", out)
	}
	out := w.must("inspect", id)
	for _, want := range []string{"runner    is running", "running/  1 task", id, "deploy of 1.1.0", "the runner is deploying it", "attempts", "payload", "waiting"} {
		if !strings.Contains(out, want) {
			t.Errorf("inspect does not say %q:\n%s", want, out)
		}
	}
	out = w.must("cancel", id[:8], "--reason", "wrong version", "--wait")
	if !strings.Contains(out, "asked the runner") || !strings.Contains(out, "cancelled by an operator (wrong version)") {
		t.Errorf("cancel says %q", out)
	}
	r := w.row(id)
	if r.Status != "failed" || r.Result["restored"] != true || !strings.HasPrefix(r.Error, "cancelled by an operator (wrong version)") {
		t.Errorf("task is %s", r.Raw)
	}
	w.awaitLine(lines, "deploy of 1.1.0 failed")
	if got := w.get("/"); got != "1.0.0" {
		t.Errorf("%s serves after the cancellation", got)
	}
	for _, m := range w.mails(4)[2:] {
		if !bytes.Contains(m.Raw, []byte("cancelled by an operator")) {
			t.Errorf("a mail does not say that the task was cancelled:\n%s", m.Raw)
		}
	}
	w.awaitClean()
	if out := w.must("logs", id); !strings.Contains(out, "cancelled by an operator") {
		t.Errorf("logs of a directory that is gone shows %q", out)
	}
	if _, stderr, code := w.command("cancel", id); code != 1 || !strings.Contains(stderr, "has ended already") {
		t.Errorf("cancelled twice: exit code %d, %s", code, stderr)
	}
}

// A pending task that was cancelled never begins.
func TestCancelledPendingTaskNeverBegins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.ask("deploy", w.waiting("1.0.0"))
	if out := w.must("cancel", id[:8], "--reason", "not today"); !strings.Contains(out, "had not begun") {
		t.Errorf("cancel says %q", out)
	}
	next := w.ask("deploy", w.release("2.0.0", compose(testenv.AppImage(t, "2.0.0")).tarball(t), ""))
	w.run()
	if r := w.await(next); r.Status != "completed" {
		t.Fatalf("the task after it: %s", r.Raw)
	}
	r := w.row(id)
	if r.Status != "failed" || r.Error != "cancelled by an operator before it began (not today)" || r.Picked != nil || r.Ended == nil || r.Result["status"] != "failed" {
		t.Errorf("task is %s", r.Raw)
	}
	if _, stderr, code := w.command("cancel", "0"); code != 2 {
		t.Errorf("a name that could mean anything: exit code %d, %s", code, stderr)
	}
	if _, stderr, code := w.command("cancel", "ffffffff-0000"); code != 1 || !strings.Contains(stderr, "there is no task") {
		t.Errorf("no such task: exit code %d, %s", code, stderr)
	}
}

// With the agent's schema, the timeline can be read in PostgreSQL while the task
// runs, and a request to cancel it reaches the agent from any host.
func TestTimelineAndCancellationThroughTheDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run()
	id := w.ask("deploy", w.waiting("1.0.0"))
	w.awaitState(id, "waiting")
	elsewhere := slices.Clone(w.env)
	for i, v := range elsewhere {
		if strings.HasPrefix(v, "STATE_DIRECTORY=") {
			elsewhere[i] = "STATE_DIRECTORY=" + filepath.Join(w.dir, "elsewhere")
		}
	}
	here := w.env
	w.env = elsewhere
	if _, stderr, code := w.command("cancel", id); code != 1 || !strings.Contains(stderr, "wrktalk-agent migrate") {
		t.Errorf("without the schema: exit code %d, %s", code, stderr)
	}
	if r := w.row(id); r.Status != "inProgress" {
		t.Fatalf("a refused cancellation changed the task: %s", r.Raw)
	}
	w.env = here
	w.must("cancel", id, "--wait")
	w.stop()

	w.must("migrate")
	w.run()
	id = w.ask("deploy", w.waiting("1.1.0"))
	phases := func() string {
		return w.sql(`select string_agg(distinct component || ' ' || phase, ',') from wrktalk_agent.event where task = '%s'`, id)
	}
	w.eventually("the timeline is in PostgreSQL", func() bool { return strings.Contains(phases(), "deploy waiting") })
	if r := w.row(id); r.Status != "inProgress" {
		t.Errorf("the timeline came too late: %s", r.Raw)
	}
	w.env = elsewhere
	w.must("cancel", id, "--reason", "from afar", "--wait")
	w.env = here
	if r := w.row(id); r.Status != "failed" || !strings.HasPrefix(r.Error, "cancelled by an operator (from afar)") {
		t.Errorf("task is %s", r.Raw)
	}
	w.mails(4)
	w.awaitClean()
	w.eventually("every component's events are there", func() bool {
		got := phases()
		for _, want := range []string{"fetcher claimed", "fetcher ready", "runner verifying", "deploy applying", "runner recording", "notifier notifying"} {
			if !strings.Contains(got, want) {
				return false
			}
		}
		return true
	})
	w.env = elsewhere // on this host the history has the log
	if out := w.must("logs", id); !strings.Contains(out, "claimed deploy task") || !strings.Contains(out, "mail to ada@wrktalk.example sent") {
		t.Errorf("logs does not show the timeline:\n%s", out)
	}
}

// A task whose agent is gone can be ended by force, and by force alone.
func TestCancelByForce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.ask("deploy", w.waiting("1.0.0"))
	w.sql(`update agent_task set status = 'inProgress', picked_up_at = now(), last_heartbeat = now() where id = '%s'`, id)
	if _, _, code := w.command("cancel", id); code != 1 {
		t.Errorf("exit code %d without --force", code)
	}
	w.must("cancel", id, "--force")
	if r := w.row(id); r.Status != "failed" || !strings.Contains(r.Error, "look at what serves now") || r.Ended == nil {
		t.Errorf("task is %s", r.Raw)
	}
}

// With agent.max_overdue a task that is too late fails, one that is not runs,
// and one that was half done when its agent died is gone on with.
func TestOverdueTasksFailInsteadOfSurprising(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "WRKTALK_AGENT_MAX_OVERDUE=1h")
	release := w.release("1.0.0", compose(testenv.AppImage(t, "1.0.0")).tarball(t), "")
	ask := func(due string) string {
		t.Helper()
		id := w.ask("deploy", release)
		w.sql(`update agent_task set execute_after = now() - interval '%s' where id = '%s'`, due, id)
		return id
	}
	late, inTime, begun := ask("2 hours"), ask("30 minutes"), ask("3 hours")
	w.sql(`update agent_task set status = 'inProgress', picked_up_at = now() - interval '1 hour', last_heartbeat = now() - interval '1 hour' where id = '%s'`, begun)
	w.run()
	r := w.await(late)
	if r.Status != "failed" || !strings.Contains(r.Error, "2h0m") || !strings.Contains(r.Error, "agent.max_overdue (1h0m0s)") {
		t.Errorf("the late task is %s", r.Raw)
	}
	for what, id := range map[string]string{"the task in time": inTime, "the one taken over": begun} {
		if r := w.await(id); r.Status != "completed" {
			t.Errorf("%s is %s", what, r.Raw)
		}
	}
	w.mails(6)
}

// inspect explains what is kept, what is set aside and who is there to act.
func TestInspectExplainsWhatLiesInStaging(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "WRKTALK_AGENT_STAGING_KEEP=5")
	if _, stderr, code := w.command("inspect"); code != 1 || !strings.Contains(stderr, "no agent has run on this host") {
		t.Errorf("before the first start: exit code %d, %s", code, stderr)
	}
	for _, state := range staging.States { // as an agent that marked nothing left them
		if err := os.MkdirAll(filepath.Join(w.staging(), string(state)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	broken := filepath.Join(w.staging(), "running", "20260101T000000Z-deploy-9-deadbeef")
	if err := os.MkdirAll(broken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, "manifest.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.run()
	id := w.ask("deploy", w.release("1.0.0", compose(testenv.AppImage(t, "1.0.0")).tarball(t), ""))
	w.await(id)
	w.mails(2)
	var got struct {
		Components []struct {
			Name    string `json:"name"`
			Running bool   `json:"running"`
		} `json:"components"`
		States []struct {
			State string `json:"state"`
			Tasks []struct {
				Manifest struct {
					ID    string           `json:"task_id"`
					Files []map[string]any `json:"files"`
				} `json:"manifest"`
				Secrets []string         `json:"secrets"`
				Events  []map[string]any `json:"events"`
				Outcome map[string]any   `json:"outcome"`
				Mail    map[string]any   `json:"mail"`
				Reason  string           `json:"reason"`
				Next    string           `json:"next"`
			} `json:"tasks"`
		} `json:"states"`
	}
	look := func() string {
		out := w.must("inspect", "--output", "json")
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		return out
	}
	w.eventually("the mail is settled", func() bool { return strings.Contains(look(), "keeps it") })
	for _, c := range got.Components {
		if !c.Running {
			t.Errorf("the %s is said not to run", c.Name)
		}
	}
	for _, s := range got.States {
		switch s.State {
		case "done":
			if len(s.Tasks) != 1 || s.Tasks[0].Manifest.ID != id || len(s.Tasks[0].Manifest.Files) != 0 || s.Tasks[0].Secrets != nil ||
				len(s.Tasks[0].Events) < 5 || s.Tasks[0].Outcome["succeeded"] != true || len(s.Tasks[0].Mail["deliveries"].([]any)) != 2 {
				t.Errorf("done: %+v", s.Tasks)
			}
		case "quarantine":
			if len(s.Tasks) != 1 || !strings.Contains(s.Tasks[0].Reason, "manifest.json") || !strings.HasPrefix(s.Tasks[0].Next, "you:") {
				t.Errorf("quarantine: %+v", s.Tasks)
			}
		default:
			if len(s.Tasks) != 0 {
				t.Errorf("%s: %+v", s.State, s.Tasks)
			}
		}
	}
	out := w.must("inspect")
	for _, want := range []string{"ada@wrktalk.example: sent", "deploy of 1.0.0 completed", "quarantine/  1 task", "the last 3 of"} {
		if !strings.Contains(out, want) {
			t.Errorf("inspect does not say %q:\n%s", want, out)
		}
	}
	w.stop()
	if out := w.must("inspect", id); !strings.Contains(out, "notifier  is not running") || !strings.Contains(out, "nobody: the notifier is not running") {
		t.Errorf("inspect of a stopped agent:\n%s", out)
	}
	if out := w.must("logs", id); !strings.Contains(out, w.project) {
		t.Errorf("logs of a task that is kept: %q", out)
	}
}
