package runner

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Stop with nothing to do ends the runner at once: no timer is waited for.
func TestDefect16IdleRunnerStopsAtOnce(t *testing.T) {
	b := newFixture(t, "good", "") // whose timer is an hour
	b.start()
	b.stop()
	b.awaitEnd()
}

// Stop lets a deployment in flight end by itself, and begins no other one.
func TestStopWaitsForTheDeploymentInFlight(t *testing.T) {
	b := newFixture(t, "waits", "")
	first, name := b.ready()
	b.start()
	b.awaitNote("waiting")
	b.raw.SQL(t, fmt.Sprintf(`update agent_task set status = 'pending' where id <> '%s'`, first.ID))
	b.stop()
	b.letGo()
	b.awaitEnd()
	if got := b.where(name); got != staging.Done {
		t.Errorf("the task lies in %q", got)
	}
	if got := b.row(first.ID); got != "completed|" {
		t.Errorf("row is %s", got)
	}
}

// When the grace is over, or a second signal came, the deployment is given up
// in order: it restores, and what came of it is recorded. One that does not
// listen is killed, and what it left repaired.
func TestStopGivesUp(t *testing.T) {
	for _, c := range []struct {
		name, mode, recover, want string
		grace                     time.Duration
		signal                    func(*fixture)
	}{
		{"after the grace", "obeys", "", "failed|interrupted", 0, func(b *fixture) { b.stop() }},
		{"at the second signal", "obeys", "", "failed|interrupted", time.Hour, func(b *fixture) { b.stop(); b.interrupt() }},
		{"of one that does not listen", "hangs", "restores", "failed|the deployment process did not end within 3s and was killed; restored", 0, func(b *fixture) { b.stop() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newFixture(t, c.mode, c.recover)
			b.opts.ShutdownGrace = c.grace
			if c.mode == "hangs" {
				b.opts.RestoreTimeout, b.hangMargin = 3*time.Second, 0
			}
			task, name := b.ready()
			b.start()
			if c.mode == "hangs" {
				b.awaitNote("hanging")
			} else {
				b.awaitNote("working")
			}
			c.signal(b)
			b.awaitEnd()
			if got := b.row(task.ID); got != c.want {
				t.Errorf("row is %s", got)
			}
			if got := b.where(name); got != staging.Done {
				t.Errorf("the task lies in %q", got)
			}
			if got := b.pages(); got != "up down" {
				t.Errorf("the page went %s", got)
			}
		})
	}
}

// cutShort starts the runner so often, and kills it whenever the stand-in hangs:
// that leaves everything as it is, the page too.
func (b *fixture) cutShort(name string, times int) {
	b.t.Helper()
	for attempt := range times {
		b.start()
		b.eventually("it hangs", func() bool { return strings.Count(b.noted(), "hanging") == attempt+1 })
		b.halt()
		if got := b.where(name); got != staging.Running {
			b.t.Fatalf("the task lies in %q", got)
		}
		if got := b.pages(); strings.Contains(got, "down") {
			b.t.Errorf("the page went %s", got)
		}
	}
}

// endsFailed starts the runner, which must end the task with the error want, take the
// page down and leave no secret.
func (b *fixture) endsFailed(id task.ID, name, want string) task.Outcome {
	b.t.Helper()
	b.start()
	o := b.outcome(name)
	if o.Error != want {
		b.t.Errorf("outcome is %+v", o)
	}
	if got := b.row(id); got != "failed|"+want {
		b.t.Errorf("row is %s", got)
	}
	if got := strings.Fields(b.pages()); got[len(got)-1] != "down" {
		b.t.Errorf("the page went %s", got)
	}
	b.noSecret()
	return o
}

// The next runner goes on with what a killed one left, and after too many attempts
// it only repairs.
func TestTheNextRunnerGoesOn(t *testing.T) {
	b := newFixture(t, "hangs", "restores")
	b.opts.MaxAttempts = 2
	c, name := b.ready()
	b.cutShort(name, 2)
	o := b.endsFailed(c.ID, name, "gave up after 2 attempts, each cut short: restored")
	if !o.Restored {
		t.Errorf("outcome is %+v", o)
	}
	if got := b.noted(); strings.Count(got, "deploy") != 2 || !strings.HasSuffix(got, "recover") {
		t.Errorf("the stand-in said %s", got)
	}
}

// A task whose repairs are cut short as well is not repaired for ever.
func TestRepairsThatAreCutShortEnd(t *testing.T) {
	b := newFixture(t, "hangs", "hangs")
	b.opts.MaxAttempts = 2
	c, name := b.ready()
	b.cutShort(name, 4)
	o := b.endsFailed(c.ID, name, "gave up after 2 attempts and as many repairs, each cut short: look at what runs by hand")
	if o.Serving != "" || o.Restored {
		t.Errorf("outcome is %+v", o)
	}
	if got := b.noted(); strings.Count(got, "deploy") != 2 || strings.Count(got, "recover") != 2 {
		t.Errorf("the stand-in said %s", got)
	}
}

// A record of attempts that cannot be read blocks nothing: the task is repaired and
// failed, and its secrets go.
func TestUnreadableRecordOfAttempts(t *testing.T) {
	b := newFixture(t, "hangs", "restores")
	c, name := b.ready()
	b.cutShort(name, 1)
	if err := os.WriteFile(b.in(name, staging.Running, staging.AttemptsFile), []byte("\x00garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := b.endsFailed(c.ID, name, "gave up after 3 attempts, each cut short: restored"); !o.Restored {
		t.Errorf("outcome is %+v", o)
	}
}

// A runner that is to end when it is idle lets its deployment end, without limit.
func TestIdleLetsTheDeploymentEnd(t *testing.T) {
	b := newFixture(t, "waits", "")
	b.opts.ShutdownGrace = 0
	task, name := b.ready()
	b.start()
	b.awaitNote("waiting")
	b.idle()
	b.letGo()
	b.awaitEnd()
	if got := b.row(task.ID); got != "completed|" {
		t.Errorf("row is %s", got)
	}
	if got := b.where(name); got != staging.Done {
		t.Errorf("the task lies in %q", got)
	}
}

// A page that a killed runner left up comes down although its task needs no
// further attempt.
func TestThePageComesDownWithoutAnotherAttempt(t *testing.T) {
	b := newFixture(t, "hangs", "restores")
	task, name := b.ready()
	b.start()
	b.awaitNote("hanging")
	b.halt()
	b.raw.SQL(t, fmt.Sprintf(`update agent_task set status = 'failed' where id = '%s'`, task.ID))
	b.start()
	b.awaitState(name, "")
	b.stop()
	b.awaitEnd()
	if got := strings.Fields(b.pages()); len(got) == 0 || got[len(got)-1] != "down" {
		t.Errorf("the page went %s", got)
	}
}

// A database that is away delays the record of a task, not its end, and does not
// keep secrets on the disk.
func TestDatabaseAway(t *testing.T) {
	b := newFixture(t, "waits", "")
	task, name := b.ready()
	b.start()
	b.awaitNote("waiting")
	b.proxy.Refuse(true)
	b.letGo()
	b.awaitNote("changed")
	b.eventually("the secrets are gone", func() bool {
		_, err := os.Lstat(b.in(name, staging.Running, staging.EnvFile))
		return err != nil
	})
	b.noSecret()
	if got := b.where(name); got != staging.Running {
		t.Errorf("the task lies in %q", got)
	}
	// A stop does not wait for the database, and the next start records.
	b.stop()
	b.awaitEnd()
	if got := b.row(task.ID); got != "inProgress|" {
		t.Errorf("row is %s", got)
	}
	b.proxy.Refuse(false)
	b.start()
	b.outcome(name)
	if got := b.row(task.ID); got != "completed|" {
		t.Errorf("row is %s", got)
	}
	if got := strings.Count(b.noted(), "changed"); got != 1 {
		t.Errorf("it was applied %d times", got)
	}
}

// When the lease may have run out while the database was away, nothing is
// changed any more: another agent may be at it.
func TestNothingChangesAfterTheLease(t *testing.T) {
	b := newFixture(t, "waits", "")
	b.opts.Lease = time.Nanosecond
	task, name := b.ready()
	b.start()
	b.awaitNote("waiting")
	b.proxy.Refuse(true)
	b.letGo()
	b.awaitNote("proceed false")
	b.proxy.Refuse(false)
	b.outcome(name)
	if got := b.row(task.ID); !strings.Contains(got, "another agent may have taken the task over") {
		t.Errorf("row is %s", got)
	}
	if got := b.pages(); got != "" {
		t.Errorf("the page went %s", got)
	}
}

// A good deployment and a connection that is cut just when its status is
// written, before or after the commit, end in completed, applied once.
func TestDefect14CutWhileRecording(t *testing.T) {
	for _, request := range []string{"update agent_task set status", "commit"} {
		t.Run(request, func(t *testing.T) {
			b := newFixture(t, "waits", "")
			task, name := b.ready()
			b.start()
			b.awaitNote("waiting")
			b.proxy.LoseReplyTo(request, 2)
			b.letGo()
			if o := b.outcome(name); !o.Succeeded {
				t.Errorf("outcome is %+v", o)
			}
			if got := b.row(task.ID); got != "completed|" {
				t.Errorf("row is %s", got)
			}
			if b.proxy.Lost() == 0 {
				t.Error("no reply was lost: the test shows nothing")
			}
			if got := strings.Count(b.noted(), "changed"); got != 1 {
				t.Errorf("it was applied %d times", got)
			}
			if got := b.raw.SQL(t, `select release_version from release_artifact where is_current`); got != "1.0.0" {
				t.Errorf("%q is current", got)
			}
		})
	}
}

// Nothing of the runner's environment reaches wrktalk-deploy but what it is
// given, and that holds for nothing, too.
func TestEnvironmentIsGivenNotInherited(t *testing.T) {
	t.Setenv("WRKTALK_AGENT_DB_PASSWORD", "PASSWORD-0815")
	var out bytes.Buffer
	p, err := startDeploy("/usr/bin/env", nil, protocol.Job{}, &out)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if !p.State().Success() {
		t.Fatalf("env ended with %v", p.State())
	}
	if out.Len() > 0 {
		t.Errorf("the process sees %q", out.String())
	}
}
