package runner

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// Stop with nothing to do ends the runner at once: no timer is waited for.
func TestDefect16IdleRunnerStopsAtOnce(t *testing.T) {
	b := newBench(t, "good", "") // whose timer is an hour
	b.start()
	b.stop()
	b.awaitEnd()
}

// Stop lets a deployment in flight end by itself, and begins no other one.
func TestStopWaitsForTheDeploymentInFlight(t *testing.T) {
	b := newBench(t, "waits", "")
	first, name := b.ready()
	b.start()
	b.awaitWord("waiting")
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
		signal                    func(*bench)
	}{
		{"after the grace", "obeys", "", "failed|interrupted", 0, func(b *bench) { b.stop() }},
		{"at the second signal", "obeys", "", "failed|interrupted", time.Hour, func(b *bench) { b.stop(); b.interrupt() }},
		{"of one that does not listen", "hangs", "restores", "failed|the deployment process did not end within 3s and was killed; restored", 0, func(b *bench) { b.stop() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.mode, c.recover)
			b.opts.ShutdownGrace = c.grace
			if c.mode == "hangs" {
				b.opts.RestoreTimeout, b.margin = 3*time.Second, 0
			}
			task, name := b.ready()
			b.start()
			if c.mode == "hangs" {
				b.awaitWord("hanging")
			} else {
				b.awaitWord("working")
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

// A runner that is killed leaves everything as it is, the page too; the next
// one goes on, and after too many attempts it only repairs.
func TestTheNextRunnerGoesOn(t *testing.T) {
	b := newBench(t, "hangs", "restores")
	b.opts.MaxAttempts = 2
	task, name := b.ready()
	for attempt := range 2 {
		b.start()
		b.eventually("it hangs", func() bool { return strings.Count(b.said(), "hanging") == attempt+1 })
		b.halt()
		if got := b.where(name); got != staging.Running {
			t.Fatalf("the task lies in %q", got)
		}
		if got := b.pages(); strings.Contains(got, "down") {
			t.Errorf("the page went %s", got)
		}
	}
	b.start()
	o := b.outcome(name)
	if want := "gave up after 2 attempts, each cut short: restored"; o.Error != want || !o.Restored {
		t.Errorf("outcome is %+v", o)
	}
	if got := b.row(task.ID); got != "failed|"+o.Error {
		t.Errorf("row is %s", got)
	}
	if got := b.said(); strings.Count(got, "deploy") != 2 || !strings.HasSuffix(got, "recover") {
		t.Errorf("the stand-in said %s", got)
	}
	if got := strings.Fields(b.pages()); got[len(got)-1] != "down" {
		t.Errorf("the page went %s", got)
	}
	b.noSecret()
}

// A page that a killed runner left up comes down although its task needs no
// further attempt.
func TestThePageComesDownWithoutAnotherAttempt(t *testing.T) {
	b := newBench(t, "hangs", "restores")
	task, name := b.ready()
	b.start()
	b.awaitWord("hanging")
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
	b := newBench(t, "waits", "")
	task, name := b.ready()
	b.start()
	b.awaitWord("waiting")
	b.proxy.Refuse(true)
	b.letGo()
	b.awaitWord("changed")
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
	if got := strings.Count(b.said(), "changed"); got != 1 {
		t.Errorf("it was applied %d times", got)
	}
}

// When the lease may have run out while the database was away, nothing is
// changed any more: another agent may be at it.
func TestNothingChangesAfterTheLease(t *testing.T) {
	b := newBench(t, "waits", "")
	b.opts.Lease = time.Nanosecond
	task, name := b.ready()
	b.start()
	b.awaitWord("waiting")
	b.proxy.Refuse(true)
	b.letGo()
	b.awaitWord("proceed false")
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
			b := newBench(t, "waits", "")
			task, name := b.ready()
			b.start()
			b.awaitWord("waiting")
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
			if got := strings.Count(b.said(), "changed"); got != 1 {
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
	p, err := startProcess("/usr/bin/env", nil, deployment.Job{}, &out)
	if err != nil {
		t.Fatal(err)
	}
	for range p.messages {
	}
	if p.exit == nil || !p.exit.Success() {
		t.Fatalf("env ended with %v", p.exit)
	}
	if out.Len() > 0 {
		t.Errorf("the process sees %q", out.String())
	}
}

func TestAfterDone(t *testing.T) {
	first, cancel := context.WithCancel(t.Context())
	later, release := afterDone(first, 0)
	cancel()
	<-later.Done()
	release()
	release() // twice does no harm

	later, release = afterDone(t.Context(), 0)
	if later.Err() != nil {
		t.Error("it is over before it began")
	}
	release()
	release()
	<-later.Done()
}
