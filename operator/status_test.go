package operator

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// why returns what each pending task waits for.
func (e *env) why() map[task.ID]string {
	e.t.Helper()
	why := map[task.ID]string{}
	for _, q := range e.status().Queue {
		why[q.ID] = q.Why
	}
	return why
}

// Each task that waits is listed, with what it waits for.
func TestStatusSaysWhyEachTaskWaits(t *testing.T) {
	e := newEnv(t)
	e.raw.SQL(t, "insert into deployment_config (deployment_type) values ('docker')")
	first := e.newTask("1.0.0", nil)
	if got := e.why()[first]; !strings.HasPrefix(got, "waiting: no agent has ever asked") {
		t.Errorf("without an agent, it waits: %q", got)
	}
	claimed := e.claim()
	second, third := e.newTask("2.0.0", nil), e.newTask("3.0.0", nil)
	later := time.Now().Add(time.Hour)
	fourth, never := e.newTask("4.0.0", &later), e.newTask("5.0.0", nil)
	e.raw.SQL(t, fmt.Sprintf("update agent_task set execute_after = 'infinity' where id = '%s'", never))

	why := e.why()
	for id, want := range map[task.ID]string{
		second: "waiting for task " + string(claimed.ID) + ", which is in progress",
		fourth: "waiting until " + later.Local().Format("2006-01-02 15:04"),
		never:  "waiting for ever",
	} {
		if !strings.HasPrefix(why[id], want) {
			t.Errorf("task %s: %q, want %q", id, why[id], want)
		}
	}
	if strings.Contains(why[second], "silent") {
		t.Errorf("an agent that was just heard of is silent: %s", why[second])
	}

	// The other agent is not heard of any more.
	silentFor := func(interval string) string {
		e.raw.SQL(t, fmt.Sprintf(`update agent_task set last_heartbeat = now() - interval '%s',
			picked_up_at = now() - interval '%[1]s' where id = '%[2]s'`, interval, claimed.ID))
		return e.why()[second]
	}
	if got := silentFor("3 minutes"); !strings.Contains(got, "its agent has been silent for 3m") || !strings.Contains(got, "and its lease ends in ") {
		t.Errorf("with a silent agent, it waits: %q", got)
	}
	if got := silentFor("1 hour"); !strings.Contains(got, "its lease has ended: the next agent that asks takes it over") {
		t.Errorf("with an agent that is gone, it waits: %q", got)
	}

	e.raw.SQL(t, fmt.Sprintf("update agent_task set status = 'completed' where id = '%s'", claimed.ID))
	why = e.why()
	for id, want := range map[task.ID]string{second: "waiting for the agent to pick the task up", third: "waiting for task " + string(second) + ", which comes first"} {
		if why[id] != want {
			t.Errorf("task %s: %q, want %q", id, why[id], want)
		}
	}
}

// What lies in the staging directory is counted, its locks tell which component
// runs, and a task's last event there is its phase.
func TestStatusReadsTheStagingDirectory(t *testing.T) {
	e := newEnv(t)
	id := e.newTask("1.0.0", nil)
	ready := e.publish(e.claim())
	event := task.Event{Time: time.Now(), Component: "fetcher", Phase: task.PhaseReady, Text: "staged it"}
	if err := ready.Append(event); err != nil {
		t.Fatal(err)
	}
	s := e.status()
	if !s.Running[staging.Fetcher] || s.Running[staging.Runner] || s.Staging[staging.Ready] != 1 || s.Staging[staging.Done] != 0 {
		t.Errorf("running %v, staging %v", s.Running, s.Staging)
	}
	if len(s.InProgress) != 1 || s.InProgress[0].ID != id || s.InProgress[0].Phase == nil || s.InProgress[0].Phase.Text != "staged it" {
		t.Errorf("in progress: %+v", s.InProgress)
	}
	e.StagingDir += "/not/there"
	if s := e.status(); s.Running == nil || len(s.Running) != 0 || s.Staging != nil {
		t.Errorf("without a directory: running %v, staging %v", s.Running, s.Staging)
	}
}

// The mails of several tasks are summed up: the earliest try, the newest error.
func TestStatusSumsUpWaitingMail(t *testing.T) {
	e := newEnv(t)
	e.newTask("1.0.0", nil)
	st := e.publish(e.claim())
	for _, step := range []func() error{st.Start, func() error { return st.SaveOutcome(task.Outcome{Schema: task.OutcomeSchema}) }, st.Complete} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if m := e.status().Mail; m != nil {
		t.Errorf("without a record: %+v", m)
	}
	now := time.Now()
	e.ReadMail = func(*staging.Task) (*Mail, error) {
		return &Mail{Deliveries: []Delivery{
			{Address: "a@b.c", UpdatedAt: now.Add(time.Hour), LastError: "of one that was sent"},
			{Address: "d@e.f", Pending: true, NextTry: now.Add(time.Hour), LastError: "454 later", UpdatedAt: now},
			{Address: "g@h.i", Pending: true, NextTry: now.Add(time.Minute), LastError: "451 soon", UpdatedAt: now.Add(-time.Hour)},
		}}, nil
	}
	if m := e.status().Mail; m == nil || m.Pending != 2 || m.LastError != "454 later" || !m.NextTry.Equal(now.Add(time.Minute)) {
		t.Errorf("the mail is %+v", m)
	}
}
