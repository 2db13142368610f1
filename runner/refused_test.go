package runner

import (
	"os"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// refuse has the backend refuse every outcome of a task, and no heartbeat.
func (b *fixture) refuse(c *taskdb.Task) {
	b.t.Helper()
	b.raw.SQL(b.t, `create table if not exists refused (id text);
		create or replace function refuse() returns trigger language plpgsql as $$ begin
			if exists (select 1 from refused where id = new.id::text) then raise 'not this one'; end if;
			return new;
		end $$;
		create or replace trigger refuse before update of status on agent_task for each row
			when (new.status in ('completed', 'failed')) execute function refuse();
		insert into refused values ('`+string(c.ID)+`')`)
	b.unrecorded[c.ID] = c.Token
}

// awaitRefused waits until the runner has left a task's outcome for later.
func (b *fixture) awaitRefused(name string) *staging.Task {
	b.t.Helper()
	b.eventually("the outcome is refused", func() bool {
		_, err := os.Lstat(b.in(name, staging.Running, staging.RefusalFile))
		return err == nil
	})
	tasks, err := b.fetcher.List(staging.Running)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, t := range tasks {
		if t.Name == name {
			return t
		}
	}
	b.t.Fatalf("%s is not in running", name)
	return nil
}

// One outcome that the database refuses stops no other task. What serves is true all
// the while; it is recorded once the database takes it, or given up by an operator.
func TestARefusedOutcomeStopsNoOther(t *testing.T) {
	b := newFixture(t, "good", "")
	flags := func(current, previous *taskdb.Task) {
		t.Helper()
		got := b.raw.SQL(t, `select (select id from release_artifact where is_current), (select id from release_artifact where is_previous)`)
		if got != current.ArtifactID+"|"+previous.ArtifactID {
			t.Errorf("the flags are %s, want %s|%s", got, current.ArtifactID, previous.ArtifactID)
		}
	}
	first, name := b.ready()
	b.refuse(first)
	b.start()
	left := b.awaitRefused(name)
	if f := left.Refusal(); !f.LetsPass {
		t.Errorf("others may not pass: %+v", f)
	}
	b.noSecret()

	second, other := b.ready()
	if o := b.outcome(other); !o.Succeeded || b.row(second.ID) != "completed|" {
		t.Errorf("the task after it: %+v, row %s", o, b.row(second.ID))
	}
	flags(second, first)

	// Mended, it is recorded late, and the flags stay as they are.
	b.raw.SQL(t, "delete from refused")
	f := left.Refusal()
	f.Next = time.Time{}
	if err := left.SaveRefusal(*f); err != nil {
		t.Fatal(err)
	}
	_, third := b.ready() // the runner looks
	b.outcome(third)
	if b.outcome(name); b.row(first.ID) != "completed|" {
		t.Errorf("the row of the first is %s", b.row(first.ID))
	}

	// Given up, it is mailed about, and not begun again.
	fourth, name := b.ready()
	b.refuse(fourth)
	left = b.awaitRefused(name)
	if err := left.RequestForget(); err != nil {
		t.Fatal(err)
	}
	_, fifth := b.ready()
	b.outcome(fifth)
	if o := b.outcome(name); o.TaskID != fourth.ID || b.row(fourth.ID) != "inProgress|" {
		t.Errorf("forgotten: %+v, row %s", o, b.row(fourth.ID))
	}
	if claims, err := b.fetcher.Forgotten(); err != nil || len(claims) != 1 || claims[0] != (staging.Claim{TaskID: fourth.ID, Token: fourth.Token}) {
		t.Errorf("forgotten: %+v, %v", claims, err)
	}
	claim, err := b.db.Claim(t.Context(), target, taskdb.ClaimOptions{Claim: true, Except: map[task.ID]task.Token{fourth.ID: fourth.Token}})
	if err != nil || claim.Busy != nil || claim.Task != nil {
		t.Errorf("it is claimed again: %+v, %v", claim, err)
	}
}

// As long as the database does not take what serves, nothing else begins: it would
// be based on something untrue.
func TestARefusedReleaseHoldsTheOthers(t *testing.T) {
	b := newFixture(t, "good", "")
	first, name := b.ready()
	b.refuse(first)
	b.raw.SQL(t, `create function keep() returns trigger language plpgsql as $$ begin raise 'flags are ours'; end $$;
		create trigger keep before update on release_artifact for each row execute function keep()`)
	b.start()
	left := b.awaitRefused(name)
	if f := left.Refusal(); f.LetsPass {
		t.Errorf("others may pass: %+v", f)
	}
	_, second := b.ready()
	if err := left.RequestForget(); err != nil {
		t.Fatal(err)
	}
	b.outcome(name)
	if b.where(second) == staging.Done {
		t.Error("the second did not wait")
	}
	b.raw.SQL(t, "drop trigger keep on release_artifact")
	b.outcome(second)
}
