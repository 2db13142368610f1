package helm

import (
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

func (b *fixture) rollbackJob(to, from *protocol.Release) protocol.Job {
	job := b.job(to, from)
	job.Kind, job.TaskID = task.KindRollback, "rollback-to-"+task.ID(to.Version)
	return job
}

func TestRollback(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "greeting: hello\n")
	two := b.release("2.0.0", files("2.0.0", nil), "")
	b.up(one, nil)
	b.up(two, one)
	bad := b.job(b.release("3.0.0", files("3.0.0", nil), failing(testenv.FailCrash)), two)
	if res := b.expire(bad, notReady, crashed); res.Succeeded || res.Serving != "2.0.0" {
		t.Fatalf("%+v", res)
	}

	// To the revision the history holds, with the values it had then.
	res := b.run(b.rollbackJob(one, two))
	if !res.Succeeded || res.Serving != "1.0.0" || res.HelmRevision != 5 || b.approvals != 1 {
		t.Fatalf("%d approvals, %+v", b.approvals, res)
	}
	b.serves("1.0.0")
	if h := b.history(); h[4].Description != "Rollback to 1" {
		t.Errorf("%+v", h)
	}
	if got := b.kubectl("get", "configmap", "config", "--output", "jsonpath={.data.greeting}"); got != "hello" {
		t.Errorf("greeting %q", got)
	}

	// Back again, although a restoration of it lies in between.
	if res := b.run(b.rollbackJob(two, one)); !res.Succeeded || res.Serving != "2.0.0" {
		t.Errorf("%+v", res)
	}
	b.serves("2.0.0")

	// To an artifact that the history no longer holds: it is deployed.
	zero := b.release("0.9.0", files("0.9.0", nil), "")
	if res := b.run(b.rollbackJob(zero, two)); !res.Succeeded || res.Serving != "0.9.0" {
		t.Errorf("%+v", res)
	}
	b.serves("0.9.0")
	if h := b.history(); !strings.HasPrefix(h[len(h)-1].Description, "Upgrade complete") {
		t.Errorf("%+v", h)
	}
}

func TestUnnamedRollback(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	none := &protocol.Release{}
	b.refusedWith(b.run(b.rollbackJob(none, nil)), "there is no release to roll back to")
	one, two := b.release("1.0.0", files("1.0.0", nil), ""), b.release("2.0.0", files("2.0.0", nil), "")
	b.up(one, nil)
	b.refusedWith(b.run(b.rollbackJob(none, one)), "there is no release to roll back to")
	b.up(two, one)
	bad := b.job(b.release("3.0.0", files("3.0.0", nil), failing(testenv.FailCrash)), two)
	if res := b.expire(bad, notReady, crashed); res.Succeeded {
		t.Fatalf("%+v", res)
	}
	// Neither the failed revision, nor the restored one's original.
	if res := b.run(b.rollbackJob(none, two)); !res.Succeeded || res.Serving != "1.0.0" {
		t.Errorf("%+v", res)
	}
	b.serves("1.0.0")
}

// TestRollbackAfterAPersonsHand goes back to what served before, of which the flags in
// the database do not know when a person brought it up.
func TestRollbackAfterAPersonsHand(t *testing.T) {
	t.Parallel()
	one, two, three := newRelease(t, "1.0.0", files("1.0.0", nil), ""), newRelease(t, "2.0.0", files("2.0.0", nil), ""), newRelease(t, "3.0.0", files("3.0.0", nil), "")
	for name, c := range map[string]struct {
		make              func(b *fixture)
		flagged, current  *protocol.Release
		want, wantVersion string
	}{
		"rolled back by hand": {func(b *fixture) {
			b.up(one, nil)
			b.up(two, one)
			b.helm("rollback", releaseName, "1", "--wait")
			b.up(three, two)
		}, two, three, "1.0.0", "1.0.0"},
		"upgraded by hand": {func(b *fixture) {
			b.up(one, nil)
			b.helm("upgrade", releaseName, two.PayloadDir, "--wait")
			b.up(three, one)
		}, one, three, "2.0.0", "chart app-2.0.0"},
		"installed by hand": {func(b *fixture) {
			b.helm("install", releaseName, one.PayloadDir, "--wait")
			b.up(two, nil)
		}, &protocol.Release{}, two, "1.0.0", "chart app-1.0.0"},
		"not at all": {func(b *fixture) {
			b.helm("install", releaseName, one.PayloadDir, "--wait")
			b.up(two, nil)
			b.up(three, two)
		}, two, three, "2.0.0", "2.0.0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			c.make(b)
			job := b.rollbackJob(c.flagged, c.current)
			job.Unnamed = true
			res := b.run(job)
			if !res.Succeeded || res.Serving != c.wantVersion {
				t.Errorf("%+v", res)
			}
			if want := map[string]string{"1.0.0": one.ArtifactID, "2.0.0": two.ArtifactID}[c.wantVersion]; res.ArtifactID != want {
				t.Errorf("artifact %q, not %q", res.ArtifactID, want)
			}
			b.serves(c.want)
			// Another claim of the task finds it done.
			job.Token += "again"
			if again := b.run(job); !again.Succeeded || again.HelmRevision != res.HelmRevision || again.Serving != c.wantVersion || b.approvals != 0 {
				t.Errorf("%d approvals, %+v", b.approvals, again)
			}
		})
	}
}

func TestFailedRollback(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", map[string]string{
		"templates/bad.yaml": hook("bad", "post-rollback", testenv.FailAnnotation+": "+testenv.FailExit),
	}), "")
	two := b.release("2.0.0", files("2.0.0", nil), "")
	b.up(one, nil)
	b.up(two, one)
	res := b.run(b.rollbackJob(one, two))
	failsWith(t, res, "hook job/bad failed")
	if !res.Restored || res.Serving != "2.0.0" || res.HelmRevision != 4 {
		t.Errorf("%+v", res)
	}
	b.serves("2.0.0")
	if got := b.statuses(); got != "1 superseded, 2 superseded, 3 failed, 4 deployed" {
		t.Errorf("history: %s", got)
	}
}

// TestInstallOverLeftovers installs over a first installation of ours that died,
// and fails: the failure is still explained, and nothing stays.
func TestInstallOverLeftovers(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	bad := b.release("1.0.0", files("1.0.0", nil), failing(testenv.FailUnready))
	b.killCLI("1", "pending-install", "install", releaseName, bad.PayloadDir, "-f", bad.ValuesFile)
	b.change(byTheAgent)
	res := b.expire(b.job(b.release("2.0.0", files("2.0.0", nil), failing(testenv.FailCrash)), nil), notReady, crashed)
	failsWith(t, res, notUp, "keeps ending: exit code 1")
	if res.Serving != "" || !strings.Contains(res.Message, "it was removed") {
		t.Errorf("%+v", res)
	}
	b.nothing()
}
