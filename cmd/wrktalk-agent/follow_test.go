package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// away is a task that an agent of another host works on.
type away struct {
	*desk
	claimed *taskdb.Task
	said    int
}

func newAway(t *testing.T) *away {
	t.Helper()
	d := newDesk(t)
	if err := d.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.ask(d.artifact(task.ChartCompose, "1.0.0"))
	return &away{desk: d, claimed: d.claim()}
}

// say records an event of the task.
func (w *away) say(phase task.Phase, text string) {
	w.t.Helper()
	w.said++
	e := task.Event{Time: time.Now().Add(time.Duration(w.said) * time.Millisecond), Component: "runner", Phase: phase, Text: text}
	if err := w.db.AppendEvents(w.t.Context(), w.claimed.ID, w.claimed.Token, []task.Event{e}); err != nil {
		w.t.Fatal(err)
	}
}

// end completes the task.
func (w *away) end() {
	w.t.Helper()
	o := task.Outcome{
		Schema: task.OutcomeSchema, TaskID: w.claimed.ID, Kind: w.claimed.Kind, Token: w.claimed.Token, ArtifactID: w.claimed.ArtifactID,
		ReleaseVersion: "1.0.0", Succeeded: true, Message: "it is up", StartedAt: time.Now(), FinishedAt: time.Now(),
	}
	if err := w.db.Finish(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

// Whoever may not read the staging directory, or sits on another host, sees
// the phases as the database has them, each once.
func TestTaskElsewhereIsFollowedInTheDatabase(t *testing.T) {
	for _, command := range []string{"deploy --wait", "logs --follow"} {
		t.Run(command, func(t *testing.T) {
			w := newAway(t)
			w.say(task.PhaseStaging, "staging it")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var out, complaint output
			a := w.app(&out, &complaint)
			a.output = "text"
			cfg, err := a.config()
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				if command == "deploy --wait" {
					ended <- a.follow(ctx, w.db, cfg, w.claimed.ID, "1.0.0")
				} else {
					ended <- a.remoteLogs(ctx, cfg, nil, string(w.claimed.ID), true)
				}
			}()
			out.await(ctx, t, "staging it")
			w.say(task.PhaseApplying, "bringing it up")
			out.await(ctx, t, "bringing it up")
			w.say(task.PhaseRecording, "recording it")
			w.end()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			for _, once := range []string{"staging it", "bringing it up", "recording it", "deploy of 1.0.0 completed"} {
				if n := strings.Count(out.String(), once); n != 1 {
					t.Errorf("%q is said %d times:\n%s", once, n, out.String())
				}
			}
		})
	}
}

func TestLiveLineOfATaskWithoutEvents(t *testing.T) {
	var out output
	f := &follower{out: &out, live: true, started: time.Now(), status: task.StatusInProgress}
	f.draw()
	if !strings.Contains(out.String(), "in progress") {
		t.Errorf("a task in progress is %q", out.String())
	}
}

// Without a directory here and without a name, the database's newest task is
// shown.
func TestLogsWithoutADirectory(t *testing.T) {
	w := newAway(t)
	if _, complaint, code := w.run("logs", "nonsense"); code != exitFailed || !strings.Contains(complaint, "there is no task") {
		t.Errorf("exit code %d, %s", code, complaint)
	}
	w.say(task.PhaseApplying, "bringing it up")
	out, complaint, code := w.run("logs")
	if code != exitDone || !strings.Contains(out, "bringing it up") || !strings.Contains(complaint, "out of reach from here") {
		t.Errorf("exit code %d, %q, %q", code, out, complaint)
	}
	w.end()
	if out := w.must("logs"); !strings.Contains(out, "bringing it up") || !strings.Contains(out, "completed") {
		t.Errorf("logs of a task that ended says %q", out)
	}
	var c account
	w.document(&c, "logs")
	if c.ID != w.claimed.ID || c.Task == nil || c.Task.Status != task.StatusCompleted || len(c.Events) != 1 || c.Log != "" {
		t.Errorf("as a document: %+v", c)
	}
}

// The log of a directory that lies here, as a document.
func TestLogsAsADocument(t *testing.T) {
	d := newDesk(t)
	st := published(t, d, "1397f0f1-0000-4000-8000-000000000001")
	if err := st.Append(task.Event{Time: time.Now(), Component: "fetcher", Phase: task.PhaseReady, Text: "staged it"}); err != nil {
		t.Fatal(err)
	}
	say(t, st, "pulling\n")
	var c account
	d.document(&c, "logs")
	if c.ID != "1397f0f1-0000-4000-8000-000000000001" || c.State != "ready" || c.Log != "pulling\n" || len(c.Events) != 1 || c.Outcome != nil {
		t.Errorf("as a document: %+v", c)
	}
}

// A staging directory that may not be read is said, before the database's
// account is shown.
func TestLogsSayThatTheDirectoryMayNotBeRead(t *testing.T) {
	w := newAway(t)
	w.say(task.PhaseApplying, "bringing it up")
	var out, complaint output
	// A file where the directory should be fails for root as well.
	a := w.app(&out, &complaint, "WRKTALK_AGENT_STAGING_DIR=/dev/null/staging")
	if code := a.main([]string{"logs", string(w.claimed.ID)}); code != exitDone {
		t.Errorf("exit code %d: %s", code, complaint.String())
	}
	if !strings.Contains(complaint.String(), "/dev/null/staging") || !strings.Contains(out.String(), "bringing it up") {
		t.Errorf("said %q and %q", complaint.String(), out.String())
	}
}

func TestDocumentsOfTheOtherCommands(t *testing.T) {
	d := newDesk(t)
	var m migration
	if d.document(&m, "migrate"); m.Version != taskdb.SchemaVersion || m.Created {
		t.Errorf("migrate: %+v", m)
	}
	id := d.ask(d.artifact(task.ChartCompose, "1.0.0"))
	var c cancelReport
	if d.document(&c, "cancel", string(id)[:8]); c.ID != id || c.Did != cancelEnded || !strings.Contains(c.Message, "had not begun") || c.Task != nil {
		t.Errorf("cancel: %+v", c)
	}
	d.ask(d.artifact(task.ChartCompose, "2.0.0"))
	claimed := d.claim()
	if d.document(&c, "cancel", string(claimed.ID)); c.Did != cancelAsked {
		t.Errorf("cancel of a task elsewhere: %+v", c)
	}
	if d.document(&c, "cancel", string(claimed.ID), "--force", "--wait"); c.Did != cancelForce || c.Task == nil || c.Task.Status != task.StatusFailed {
		t.Errorf("cancel by force: %+v", c)
	}
	if d.document(&m, "migrate", "--down"); m.Version != 0 {
		t.Errorf("migrate --down: %+v", m)
	}
	server := d.mailServer()
	var n map[string]any
	if d.document(&n, "notify-test", "ada@example.com"); n["accepted"] != true || n["server"] != server.Host || n["recipient"] != "ada@example.com" {
		t.Errorf("notify-test: %+v", n)
	}
	if mails := server.Mails(); len(mails) != 1 {
		t.Errorf("%d mails", len(mails))
	}
	if _, complaint, code := d.run("logs", "--output", "yaml"); code != exitUsage || !strings.Contains(complaint, "want text or json") {
		t.Errorf("exit code %d, %s", code, complaint)
	}
}
