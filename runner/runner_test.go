package runner

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
)

// A ready directory becomes an outcome, a recorded row and a stripped directory
// in done, with the page up while something changes.
func TestReadyBecomesDone(t *testing.T) {
	b := newFixture(t, "good", "")
	c, name := b.ready()
	b.start()
	o := b.outcome(name)
	if !o.Succeeded || o.Serving != "1.0.0" || o.ReleaseVersion != "1.0.0" || o.TaskID != c.ID || o.Token != c.Token {
		t.Errorf("outcome is %+v", o)
	}
	if got := b.row(c.ID); got != "completed|" {
		t.Errorf("row is %s", got)
	}
	if got := b.noted(); got != "deploy, proceed true, changed" {
		t.Errorf("the stand-in said %s", got)
	}
	if got := b.pages(); got != "up down" {
		t.Errorf("the page went %s", got)
	}
	for _, file := range []string{staging.EnvFile, staging.PayloadDir} {
		if _, err := os.Lstat(b.in(name, staging.Done, file)); err == nil {
			t.Errorf("%s is still there", file)
		}
	}
	b.noSecret()
	if got := b.raw.SQL(t, `select release_version from release_artifact where is_current`); got != "1.0.0" {
		t.Errorf("%q is current", got)
	}
}

// A rollback that names no release is recorded as what was brought back, which need not
// be what the flags named.
func TestUnnamedRollbackIsRecordedAsWhatItBroughtBack(t *testing.T) {
	b := newFixture(t, "elsewhere", "")
	artifact := strings.Fields(b.old())[0]
	_, name := b.ready(func(m *staging.Manifest) {
		m.Kind, m.Unnamed, m.Previous.ArtifactID = task.KindRollback, true, artifact
	})
	b.start()
	if o := b.outcome(name); !o.Succeeded || o.ArtifactID != artifact || o.ReleaseVersion != "0.9.0" || o.Serving != "0.9.0" {
		t.Errorf("outcome is %+v", o)
	}
	if got := b.current(); got != "0.9.0" {
		t.Errorf("%s is current", got)
	}
}

// Whatever wrktalk-deploy does to itself or to its pipes, the task ends in a
// state that is true, and its secrets are gone.
func TestMisbehavingDeployment(t *testing.T) {
	for _, c := range []struct {
		deploy, recover string
		status, errText string // of the row
		said            string
		short           bool // limits that are over at once
	}{
		{"fails", "", "failed", "it does not come up", "deploy", false},
		{"dies", "restores", "failed", "was ended by signal 9 (killed); restored", "recover", false},
		{"dies", "good", "completed", "", "recover, proceed true, changed", false},
		{"dies", "dies", "failed", "the last of 3 sent to repair it was ended by signal 9 (killed): look at what runs by hand", "recover", false},
		{"dies", "dies-once", "failed", "was ended by signal 9 (killed); restored", "recover, proceed true, recover, proceed true", false},
		{"silent", "restores", "failed", "ended with exit code 0 and no result", "recover", false},
		{"deaf", "", "failed", "ended with exit code 3 and no result", "deaf, deaf", false},
		{"hangs", "restores", "failed", "did not end within", "hanging, recover", true},
		{"hangs", "hangs", "failed", "look at what runs by hand", "hanging", true},
		{"floods", "", "completed", "", "changed", false},
		{"garbage", "", "completed", "", "changed", false},
		{"lingers", "", "completed", "", "changed", true},
		{"leaves-child", "", "completed", "", "changed", false},
	} {
		t.Run(c.deploy+" then "+c.recover, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t, c.deploy, c.recover)
			if c.short {
				b.opts.MaxAttempts = 1
				b.hangMargin, b.exitTimeout = 200*time.Millisecond, time.Millisecond
				b.opts.Timeout, b.opts.RestoreTimeout, b.opts.MaintenanceTimeout = 0, 0, 20*time.Second
				if c.deploy == "lingers" { // its limit is exitTimeout
					b.opts.Timeout, b.opts.RestoreTimeout = time.Hour, time.Hour
				}
			}
			task, name := b.ready()
			b.start()
			o := b.outcome(name)
			status, errText, _ := strings.Cut(b.row(task.ID), "|")
			if status != c.status || !strings.Contains(errText, c.errText) {
				t.Errorf("row is %s, %q", status, errText)
			}
			if got := string(o.Status()); got != c.status || o.Error != errText {
				t.Errorf("outcome is %+v", o)
			}
			if got := b.noted(); !strings.Contains(got, c.said) {
				t.Errorf("the stand-in said %s, want %s", got, c.said)
			}
			if got := b.pages(); got != "up down" && got != "" {
				t.Errorf("the page went %s", got)
			}
			b.noSecret()
			if info, err := os.Stat(b.in(name, staging.Done, staging.LogFile)); err == nil && info.Size() > maxLog {
				t.Errorf("the log has %d bytes", info.Size())
			}
			for _, pid := range b.leftPids() {
				b.eventually("the child that was left behind is gone", func() bool { return !alive(pid) })
			}
		})
	}
}

// leftPids returns the children that the stand-in left behind.
func (b *fixture) leftPids() []int {
	var pids []int
	for note := range strings.SplitSeq(b.noted(), ", ") {
		if number, ok := strings.CutPrefix(note, "child "); ok {
			pid, err := strconv.Atoi(number)
			if err != nil {
				b.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// alive reports whether a process runs; one that only waits to be reaped does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// What escaped from the group of wrktalk-deploy keeps its pipes; that does not hold
// the runner up.
func TestAnEscapedGrandchildHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	b := newFixture(t, "leaves-session", "")
	c, name := b.ready()
	b.start()
	b.outcome(name)
	if got := b.row(c.ID); got != "completed|" {
		t.Errorf("row is %s", got)
	}
	for _, pid := range b.leftPids() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Errorf("the child is gone already: the test shows nothing: %v", err)
		}
	}
}

// The limits derive from the configuration, and a restore has its own: one that
// goes on when the deployment's time has long been over is not cut.
func TestDefect18ALongRestoreIsNotCut(t *testing.T) {
	b := newFixture(t, "waits-inside", "dies")
	b.hangMargin = time.Millisecond
	b.opts.Timeout, b.opts.MaintenanceTimeout = time.Millisecond, 10*time.Second
	b.opts.MaintenanceEnabled = false
	_, name := b.ready()
	b.opts.MaintenanceTimeout = time.Millisecond
	b.start()
	b.awaitState(name, staging.Running)
	b.eventually("it restores", func() bool {
		data, _ := os.ReadFile(b.in(name, staging.Running, staging.EventsFile))
		return strings.Contains(string(data), "waiting")
	})
	b.letGo()
	if o := b.outcome(name); o.Error != "restored late" || !o.Restored {
		t.Errorf("outcome is %+v", o)
	}
}

// A task whose claim was lost changes nothing more: not the row, not what
// serves, and there is no mail about it.
func TestLostClaim(t *testing.T) {
	steal := func(b *fixture, id task.ID) {
		b.raw.SQL(b.t, fmt.Sprintf(`update agent_task set picked_up_at = now() + interval '1 second' where id = '%s'`, id))
	}
	t.Run("before it begins", func(t *testing.T) {
		b := newFixture(t, "good", "")
		c, name := b.ready()
		steal(b, c.ID)
		b.start()
		b.awaitState(name, "")
		if got := b.noted(); got != "" {
			t.Errorf("wrktalk-deploy was started: %s", got)
		}
	})
	t.Run("before anything changes", func(t *testing.T) {
		b := newFixture(t, "waits", "")
		b.opts.Heartbeat = time.Hour // only the request for approval can see it
		c, name := b.ready()
		b.start()
		b.awaitNote("waiting")
		steal(b, c.ID)
		b.letGo()
		b.awaitState(name, "")
		if got := b.noted(); got != "deploy, waiting" {
			t.Errorf("the stand-in said %s", got)
		}
		if got := b.pages(); got != "" {
			t.Errorf("the page went %s", got)
		}
	})
	t.Run("in the middle", func(t *testing.T) {
		b := newFixture(t, "hangs", "good")
		c, name := b.ready()
		b.start()
		b.awaitNote("hanging")
		steal(b, c.ID)
		b.awaitState(name, "")
		if got := b.noted(); strings.Contains(got, "recover") {
			t.Errorf("the stand-in said %s", got)
		}
		if got := b.pages(); got != "up down" {
			t.Errorf("the page went %s", got)
		}
		if got := b.row(c.ID); got != "inProgress|" {
			t.Errorf("row is %s", got)
		}
		b.noSecret()
	})
}

// What lies in running or ready and cannot be trusted is never deployed.
func TestUntrustworthyDirectories(t *testing.T) {
	t.Run("changed after staging", func(t *testing.T) {
		b := newFixture(t, "good", "")
		c, name := b.ready()
		if err := os.WriteFile(b.in(name, staging.Ready, "payload/compose.yaml"), []byte("services: {}!"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.start()
		b.outcome(name)
		if got := b.row(c.ID); !strings.Contains(got, "was changed after staging") {
			t.Errorf("row is %s", got)
		}
		if got := b.noted(); got != "" {
			t.Errorf("the stand-in said %s", got)
		}
	})
	t.Run("no manifest", func(t *testing.T) {
		b := newFixture(t, "good", "")
		_, name := b.ready()
		if err := os.WriteFile(b.in(name, staging.Ready, staging.ManifestFile), []byte(`{"schema": 7`), 0o600); err != nil {
			t.Fatal(err)
		}
		b.start()
		b.awaitState(name, staging.Quarantine)
		if got := b.noted(); got != "" {
			t.Errorf("the stand-in said %s", got)
		}
		b.eventually("the secrets are gone", func() bool {
			_, err := os.Lstat(b.in(name, staging.Quarantine, staging.EnvFile))
			return err != nil
		})
	})
	t.Run("removed by hand", func(t *testing.T) {
		b := newFixture(t, "waits", "")
		_, name := b.ready()
		b.start()
		b.awaitNote("waiting")
		if err := os.RemoveAll(b.in(name, staging.Running, "")); err != nil {
			t.Fatal(err)
		}
		b.letGo()
		b.eventually("the log says so", func() bool { return strings.Contains(b.logged(), "was removed while it was worked on") })
		b.stop()
		b.awaitEnd()
	})
}

// A task that cannot be handed to the notifier ends once, however often that is
// tried; a removed directory of finished tasks is made anew.
func TestATaskEndsOnce(t *testing.T) {
	b := newFixture(t, "good", "")
	var ends atomic.Int32
	b.opts.Metrics = func(s telemetry.Sample) {
		if s.Metric == telemetry.TaskEnded {
			ends.Add(1)
		}
	}
	c, name := b.ready()
	inTheWay := b.in(name, staging.Done, "x")
	if err := os.MkdirAll(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.eventually("it is tried again", func() bool { return strings.Count(b.logged(), "a task cannot be finished") > 1 })
	if err := os.RemoveAll(filepath.Dir(filepath.Dir(inTheWay))); err != nil {
		t.Fatal(err)
	}
	b.outcome(name)
	if got := b.row(c.ID); got != "completed|" {
		t.Errorf("row is %s", got)
	}
	if n := ends.Load(); n != 1 || strings.Count(b.logged(), "task completed") != 1 {
		t.Errorf("it ended %d times:\n%s", n, b.logged())
	}
}

// A refusal becomes a failed task that says what is true: after an interrupted
// attempt it is not known what serves.
func TestRefusals(t *testing.T) {
	for _, takenOver := range []bool{false, true} {
		b := newFixture(t, "good", "")
		c, name := b.ready(func(m *staging.Manifest) { m.Rejection, m.TakenOver = "it cannot be done", takenOver })
		b.start()
		o := b.outcome(name)
		if got := b.row(c.ID); got != "failed|it cannot be done" {
			t.Errorf("row is %s", got)
		}
		want, serving := "nothing was changed", "0.9.0"
		if takenOver {
			want, serving = "not known", ""
		}
		if !strings.Contains(o.Message, want) || o.Serving != serving {
			t.Errorf("taken over %v: outcome is %+v", takenOver, o)
		}
		b.halt()
	}
}

// An error of the disk delays a task; it neither loses it nor lets another one
// begin before it.
func TestDiskErrorIsWaitedOut(t *testing.T) {
	for _, c := range []struct{ file, mode string }{
		{staging.AttemptsFile, "good"}, // before the deployment
		{staging.OutcomeFile, "waits"},
		{staging.LogFile, "good"}, // costs the log alone
	} {
		t.Run(c.file, func(t *testing.T) {
			b := newFixture(t, c.mode, "")
			task, name := b.ready()
			inTheWay := func(state staging.State) {
				if err := os.MkdirAll(filepath.Join(b.in(name, state, c.file), "x"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if c.mode == "good" {
				inTheWay(staging.Ready)
			}
			b.start()
			if c.mode == "waits" {
				b.awaitNote("waiting")
				inTheWay(staging.Running)
				b.letGo()
			}
			if c.file != staging.LogFile {
				b.eventually("the log says what is wrong", func() bool { return strings.Contains(b.logged(), "trying again") })
				if err := os.RemoveAll(b.in(name, staging.Running, c.file)); err != nil {
					t.Fatal(err)
				}
			}
			b.outcome(name)
			if got := b.row(task.ID); got != "completed|" {
				t.Errorf("row is %s", got)
			}
			if got := strings.Count(b.noted(), "changed"); got != 1 {
				t.Errorf("it was applied %d times", got)
			}
		})
	}
}
