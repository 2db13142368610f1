package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/notifier"
	"github.com/wrktalk/wrktalk-agent/operator"
)

var claimAll = taskdb.ClaimOptions{Lease: time.Hour, Claim: true, Owner: "elsewhere"}

// A due task of the other chart type is picked up by no agent of this one, and
// both status and check say so.
func TestTaskOfTheOtherTypeIsExplained(t *testing.T) {
	d := newOperatorEnv(t)
	d.raw.SQL(t, "insert into deployment_config (deployment_type) values ('kubernetes')")
	d.createTask(d.artifact(task.ChartHelm, "9.0.0"))
	if _, err := d.db.AddTask(t.Context(), taskdb.NewTask{Kind: task.KindRollback}); err != nil {
		t.Fatal(err)
	}
	if out := d.must("status"); !strings.Contains(out, "2 due tasks are for helm agents; this agent deploys compose") {
		t.Errorf("status says\n%s", out)
	}
	var r operator.Status
	d.document(&r, "status")
	if r.OtherDue != 2 || r.OtherPending != 2 || len(r.Queue) != 0 {
		t.Errorf("status is %+v", r)
	}
	out, _, _ := d.run("check")
	if !strings.Contains(out, "agent.deployment_type is docker, deployment_config.deployment_type in the database kubernetes") {
		t.Errorf("check says\n%s", out)
	}
	d.raw.SQL(t, "insert into deployment_config (deployment_type) values ('docker')")
	if out, _, _ := d.run("check"); strings.Contains(out, "deployment_config.deployment_type") {
		t.Errorf("check says\n%s", out)
	}
}

// Each task that waits is listed, with what it waits for.
func TestStatusListsWhatWaits(t *testing.T) {
	d := newOperatorEnv(t)
	artifact := d.artifact(task.ChartCompose, "1.0.0")
	first := d.createTask(artifact)
	if out := d.must("status"); !strings.Contains(out, string(first)+": waiting: no agent has ever asked") {
		t.Errorf("status without an agent says\n%s", out)
	}
	claimed := d.claim()
	second := d.createTask(artifact)
	if out := d.must("status"); !strings.Contains(out, string(second)+": waiting for task "+string(claimed.ID)) {
		t.Errorf("status with a task in progress says\n%s", out)
	}
}

// The phase of a task in progress elsewhere is read from the agent's schema.
func TestStatusKnowsThePhaseOfATaskElsewhere(t *testing.T) {
	d := newOperatorEnv(t)
	if err := d.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.createTask(d.artifact(task.ChartCompose, "1.0.0"))
	c := d.claim()
	event := task.Event{Time: time.Now(), Component: "runner", Phase: task.PhaseApplying, Text: "bringing it up"}
	if err := d.db.AppendEvents(t.Context(), c.ID, c.Token, []task.Event{event}); err != nil {
		t.Fatal(err)
	}
	if out := d.must("status"); !strings.Contains(out, "applying, bringing it up") {
		t.Errorf("status says\n%s", out)
	}
}

// What answers on http.listen is believed only if it is about this
// configuration's staging directory; else the directory's locks tell.
func TestStatusBelievesOnlyItsOwnSupervisor(t *testing.T) {
	d := newOperatorEnv(t)
	own := d.staging()
	answer := own
	supervisor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{
			"staging": answer, "components": []map[string]any{{"name": "runner", "state": "running", "reason": "its own trouble"}},
		})
	}))
	defer supervisor.Close()
	status := func() string {
		t.Helper()
		var out, complaint testenv.Output
		// A proxy must not be asked for this host's pages.
		t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
		a := d.app(&out, &complaint, "WRKTALK_AGENT_HTTP_LISTEN="+supervisor.Listener.Addr().String())
		if code := a.main([]string{"status"}); code != exitDone {
			t.Fatalf("exit code %d: %s", code, complaint.String())
		}
		return out.String()
	}
	if out := status(); !strings.Contains(out, "its own trouble") {
		t.Errorf("its own supervisor is not believed:\n%s", out)
	}
	answer = "/elsewhere/staging"
	if out := status(); strings.Contains(out, "its own trouble") {
		t.Errorf("another agent's supervisor is believed:\n%s", out)
	}
	d.openStaging(staging.Runner)
	for _, out := range []string{status(), d.must("status")} { // the latter with http off
		if !strings.Contains(out, "running: runner; not running: fetcher, notifier") {
			t.Errorf("the locks are not asked:\n%s", out)
		}
	}
}

// Why mail does not leave is read in the records of deliveries.
func TestStatusSaysWhatTheMailServerAnswered(t *testing.T) {
	d := newOperatorEnv(t)
	st := published(t, d, "1397f0f1-0000-4000-8000-000000000001")
	for _, step := range []func() error{st.Start, func() error { return st.SaveOutcome(task.Outcome{Schema: task.OutcomeSchema}) }, st.Complete} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if out := d.must("status"); strings.Contains(out, "to be sent") {
		t.Errorf("status says\n%s", out)
	}
	now := time.Now()
	deliveries, err := json.Marshal(notifier.Deliveries{Schema: 1, CreatedAt: now, List: []notifier.Delivery{
		{Address: "a@b.c", State: notifier.StateSent},
		{Address: "d@e.f", State: notifier.StatePending, NextTry: now.Add(time.Hour), LastError: "454 later", UpdatedAt: now},
		{Address: "g@h.i", State: notifier.StatePending, NextTry: now.Add(time.Minute), LastError: "451 soon", UpdatedAt: now.Add(-time.Hour)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(st.Path(notifier.DeliveriesFile), deliveries, 0o600); err != nil {
		t.Fatal(err)
	}
	want := "2 to be sent, the next try at " + now.Add(time.Minute).Local().Format("15:04:05") + ": 454 later"
	if out := d.must("status"); !strings.Contains(out, want) {
		t.Errorf("status does not say %q:\n%s", want, out)
	}
}

// A database that restarts ends no --watch.
func TestWatchSurvivesTheDatabase(t *testing.T) {
	d := newOperatorEnv(t)
	proxy, connString := testenv.NewPostgresProxy(t, d.raw)
	var out, complaint testenv.Output
	a := d.app(&out, &complaint)
	a.output = "text"
	cfg, err := a.config()
	if err != nil {
		t.Fatal(err)
	}
	db, err := taskdb.Open(t.Context(), taskdb.Options{ConnString: connString})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- a.watchStatus(ctx, db, cfg) }()
	out.Await(ctx, t, "no agent has ever asked")
	proxy.Refuse(true)
	proxy.Cut()
	complaint.Await(ctx, t, "trying again")
	proxy.Refuse(false)
	d.createTask(d.artifact(task.ChartCompose, "1.0.0"))
	out.Await(ctx, t, "1 pending")
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	if n := strings.Count(complaint.String(), "\n"); n != 1 {
		t.Errorf("it complained on %d lines:\n%s", n, complaint.String())
	}
}
