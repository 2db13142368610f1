package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// remoteTask is a task that an agent of another host works on.
type remoteTask struct {
	*operatorEnv
	claimed  *taskdb.Task
	recorded int
}

func newRemoteTask(t *testing.T) *remoteTask {
	t.Helper()
	d := newOperatorEnv(t)
	if err := d.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.createTask(d.artifact(task.ChartCompose, "1.0.0"))
	return &remoteTask{operatorEnv: d, claimed: d.claim()}
}

// record adds an event of the task to the database.
func (w *remoteTask) record(phase task.Phase, text string) {
	w.t.Helper()
	w.recorded++
	e := task.Event{Time: time.Now().Add(time.Duration(w.recorded) * time.Millisecond), Component: "runner", Phase: phase, Text: text}
	if err := w.db.AppendEvents(w.t.Context(), w.claimed.ID, w.claimed.Token, []task.Event{e}); err != nil {
		w.t.Fatal(err)
	}
}

// end completes the task.
func (w *remoteTask) end() {
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
			w := newRemoteTask(t)
			w.record(task.PhaseStaging, "staging it")
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			var out, complaint testenv.Output
			a := w.app(&out, &complaint)
			a.output = "text"
			cfg, err := a.config()
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				if command == "deploy --wait" {
					ended <- a.follow(ctx, client(cfg, w.db), w.claimed.ID, "1.0.0")
				} else {
					ended <- a.remoteLogs(ctx, cfg, nil, string(w.claimed.ID), true)
				}
			}()
			out.Await(ctx, t, "staging it")
			w.record(task.PhaseApplying, "bringing it up")
			out.Await(ctx, t, "bringing it up")
			w.record(task.PhaseRecording, "recording it")
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
	var out testenv.Output
	p := &progress{out: &out, live: true, started: time.Now()}
	p.Poll(task.StatusInProgress)
	if !strings.Contains(out.String(), "in progress") {
		t.Errorf("a task in progress is %q", out.String())
	}
}

// Without a directory here and without a name, the database's newest task is
// shown.
func TestLogsWithoutADirectory(t *testing.T) {
	w := newRemoteTask(t)
	if _, complaint, code := w.run("logs", "nonsense"); code != exitFailed || !strings.Contains(complaint, "there is no task") {
		t.Errorf("exit code %d, %s", code, complaint)
	}
	w.record(task.PhaseApplying, "bringing it up")
	out, complaint, code := w.run("logs")
	if code != exitDone || !strings.Contains(out, "bringing it up") || !strings.Contains(complaint, "out of reach from here") {
		t.Errorf("exit code %d, %q, %q", code, out, complaint)
	}
	w.end()
	if out := w.must("logs"); !strings.Contains(out, "bringing it up") || !strings.Contains(out, "completed") {
		t.Errorf("logs of a task that ended says %q", out)
	}
	var c operator.TaskLog
	w.document(&c, "logs")
	if c.ID != w.claimed.ID || c.Task == nil || c.Task.Status != task.StatusCompleted || len(c.Events) != 1 || c.Log != "" {
		t.Errorf("as a document: %+v", c)
	}
}

// The log of a directory that lies here, as a document.
func TestLogsAsADocument(t *testing.T) {
	d := newOperatorEnv(t)
	st := published(t, d, "1397f0f1-0000-4000-8000-000000000001")
	if err := st.Append(task.Event{Time: time.Now(), Component: "fetcher", Phase: task.PhaseReady, Text: "staged it"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(st.Path(staging.LogFile), []byte("pulling\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var c operator.TaskLog
	d.document(&c, "logs")
	if c.ID != "1397f0f1-0000-4000-8000-000000000001" || c.State != "ready" || c.Log != "pulling\n" || len(c.Events) != 1 || c.Outcome != nil {
		t.Errorf("as a document: %+v", c)
	}
}

// A staging directory that may not be read is said, before the database's
// account is shown.
func TestLogsSayThatTheDirectoryMayNotBeRead(t *testing.T) {
	w := newRemoteTask(t)
	w.record(task.PhaseApplying, "bringing it up")
	var out, complaint testenv.Output
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
	d := newOperatorEnv(t)
	var m migration
	if d.document(&m, "migrate"); m.Version != taskdb.SchemaVersion || m.Created {
		t.Errorf("migrate: %+v", m)
	}
	id := d.createTask(d.artifact(task.ChartCompose, "1.0.0"))
	var c operator.Cancellation
	if d.document(&c, "cancel", string(id)[:8]); c.ID != id || c.Did != operator.Cancelled || !strings.Contains(c.Message, "had not begun") || c.Task != nil {
		t.Errorf("cancel: %+v", c)
	}
	d.createTask(d.artifact(task.ChartCompose, "2.0.0"))
	claimed := d.claim()
	if d.document(&c, "cancel", string(claimed.ID)); c.Did != operator.Requested {
		t.Errorf("cancel of a task elsewhere: %+v", c)
	}
	if d.document(&c, "cancel", string(claimed.ID), "--force", "--wait"); c.Did != operator.Forced || c.Task == nil || c.Task.Status != task.StatusFailed {
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
