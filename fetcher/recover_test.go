package fetcher

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// offlineDraft leaves a draft of `rollback --offline`; complete is whether its
// command got as far as the manifest.
func (fx *fixture) offlineDraft(name string, complete bool) *staging.Draft {
	fx.t.Helper()
	d, err := fx.reader.Create(name)
	if err != nil {
		fx.t.Fatal(err)
	}
	if err := d.Root().WriteFile(staging.EnvFile, []byte("API_TOKEN=secret"), 0o600); err != nil {
		fx.t.Fatal(err)
	}
	if complete {
		err := d.SaveManifest(staging.Manifest{
			TaskID: task.ID(name), Kind: task.KindRollback, Offline: true, Token: "2026-11-23T13:39:15Z",
			Release: staging.Release{Version: "1.0.0", ChartType: task.ChartCompose},
			Files:   []staging.File{{Path: staging.EnvFile, Type: staging.TypeFile, Size: 16, Mode: 0o600, SHA256: sum([]byte("API_TOKEN=secret"))}},
		})
		if err != nil {
			fx.t.Fatal(err)
		}
	}
	return d
}

// A complete draft of an offline rollback is published, whatever the database
// says, and it need not say anything.
func TestAnOfflineDraftIsPublished(t *testing.T) {
	fx := newFixture(t)
	fx.proxy.Refuse(true)
	if err := fx.offlineDraft("1", true).Close(); err != nil {
		t.Fatal(err)
	}
	fx.start()
	dir, m := fx.awaitReady()
	if !m.Offline || m.TaskID != "1" {
		t.Errorf("manifest is %+v", m)
	}
	if err := dir.Verify(m); err != nil {
		t.Error(err)
	}
	fx.stopAndWait()
	if fx.raw.SQL(t, "select count(*) from agent_task") != "0" || strings.Contains(fx.log.String(), "cannot be confirmed") {
		t.Error("the database was asked about it")
	}
}

// Drafts that were left behind are dealt with without a restart, but for one that
// a command is writing at this moment.
func TestDraftsAreRecoveredWhileIdle(t *testing.T) {
	fx := newFixture(t)
	fx.opts.Poll = 20 * time.Millisecond
	fx.start()
	fx.eventually("it is idle", func() bool { fx.mu.Lock(); defer fx.mu.Unlock(); return fx.said })
	held := fx.offlineDraft("1-held", false)
	letGo := func(d *staging.Draft) { // as the end of its writer does
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	letGo(fx.offlineDraft("2-left", false))
	lost, err := fx.reader.Create("3-lost")
	if err == nil {
		err = lost.SaveManifest(staging.Manifest{TaskID: "00000000-0000-4000-8000-0000000000ff", Kind: task.KindDeploy, Token: "lost"})
	}
	if err != nil {
		t.Fatal(err)
	}
	letGo(lost)
	fx.eventually("the others are gone", func() bool { return len(fx.list(staging.Tmp)) == 1 })
	letGo(fx.offlineDraft("4-complete", true))
	if _, m := fx.awaitReady(); m.TaskID != "4-complete" {
		t.Errorf("manifest is %+v", m)
	}
	if got := fx.list(staging.Tmp); len(got) != 1 || got[0].Name != held.Task().Name {
		t.Errorf("tmp holds %v", got)
	}
}

// A draft that cannot be shredded keeps no task waiting, and is shredded as soon
// as that is possible.
func TestAnUndeletableDraftHindersNobody(t *testing.T) {
	fx := newFixture(t)
	fx.opts.Poll = 20 * time.Millisecond
	d := fx.offlineDraft("1-stays", false)
	// A program that runs cannot be overwritten. Copied by another process: one of
	// ours could inherit the descriptor it is written through.
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	busy := d.Task().Path("busy")
	if out, err := exec.Command("cp", "-L", cat, busy).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(busy)
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.Task().Path(staging.ManifestFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := fx.addTask("deploy", fx.addRelease("1.0.0"))
	if err := d.Close(); err != nil { // its writer has ended
		t.Fatal(err)
	}
	fx.start()
	if _, m := fx.awaitReady(); m.TaskID != id {
		t.Errorf("manifest is %+v", m)
	}
	if len(fx.list(staging.Tmp)) != 1 {
		t.Error("the draft was shredded: the test shows nothing")
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	fx.eventually("the draft is gone", func() bool { return len(fx.list(staging.Tmp)) == 0 })
}

// A task that has ended, and whose outcome the database refuses, holds no other up
// and is not taken over.
func TestATaskWhoseOutcomeIsRefusedIsPassed(t *testing.T) {
	fx := newFixture(t)
	fx.addTask("deploy", fx.addRelease("1.0.0"))
	fx.start()
	ended, _ := fx.awaitReady()
	fx.stopAndWait()
	runner, err := staging.Open(fx.staging, staging.Runner)
	if err != nil {
		t.Fatal(err)
	}
	defer runner.Close()
	tasks, err := runner.List(staging.Ready)
	if err == nil {
		err = tasks[0].Start()
	}
	if err == nil {
		err = tasks[0].SaveRefusal(staging.Refusal{Reason: "no", LetsPass: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	fx.raw.SQL(t, "update agent_task set last_heartbeat = now() - interval '1 day', picked_up_at = picked_up_at")
	id := fx.addTask("deploy", fx.addRelease("2.0.0"))
	fx.start()
	if next, m := fx.awaitReady(); m.TaskID != id || next.Name == ended.Name {
		t.Errorf("staged %+v", m)
	}
}
