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

// offline leaves a draft of `rollback --offline`; complete is whether its
// command got as far as the manifest.
func (b *bench) offline(name string, complete bool) *staging.Draft {
	b.t.Helper()
	d, err := b.reader.Create(name)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := d.Root().WriteFile(staging.EnvFile, []byte("API_TOKEN=secret"), 0o600); err != nil {
		b.t.Fatal(err)
	}
	if complete {
		err := d.SetClaim(staging.Manifest{
			TaskID: task.ID(name), Kind: task.KindRollback, Offline: true, Token: "2026-11-23T13:39:15Z",
			Release: staging.Release{Version: "1.0.0", ChartType: task.ChartCompose},
			Files:   []staging.File{{Path: staging.EnvFile, Type: staging.TypeFile, Size: 16, Mode: 0o600, SHA256: sum([]byte("API_TOKEN=secret"))}},
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return d
}

// A complete draft of an offline rollback is published, whatever the database
// says, and it need not say anything.
func TestAnOfflineDraftIsPublished(t *testing.T) {
	b := newBench(t)
	b.proxy.Refuse(true)
	if err := b.offline("1", true).Close(); err != nil {
		t.Fatal(err)
	}
	b.start()
	dir, m := b.staged()
	if !m.Offline || m.TaskID != "1" {
		t.Errorf("manifest is %+v", m)
	}
	if err := dir.Verify(m); err != nil {
		t.Error(err)
	}
	b.halt()
	if b.raw.SQL(t, "select count(*) from agent_task") != "0" || strings.Contains(b.log.String(), "cannot be confirmed") {
		t.Error("the database was asked about it")
	}
}

// What is left in tmp is put away without a restart, but for what a command may
// be writing at this moment.
func TestTmpIsSweptWhileIdle(t *testing.T) {
	b := newBench(t)
	b.opts.Poll = 20 * time.Millisecond
	b.start()
	b.eventually("it is idle", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.said })
	held := b.offline("1-held", false)
	letGo := func(d *staging.Draft) { // as the end of its writer does
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	letGo(b.offline("2-left", false))
	lost, err := b.reader.Create("3-lost")
	if err == nil {
		err = lost.SetClaim(staging.Manifest{TaskID: "00000000-0000-4000-8000-0000000000ff", Kind: task.KindDeploy, Token: "lost"})
	}
	if err != nil {
		t.Fatal(err)
	}
	letGo(lost)
	b.eventually("the others are gone", func() bool { return len(b.list(staging.Tmp)) == 1 })
	letGo(b.offline("4-complete", true))
	if _, m := b.staged(); m.TaskID != "4-complete" {
		t.Errorf("manifest is %+v", m)
	}
	if got := b.list(staging.Tmp); len(got) != 1 || got[0].Name != held.Task().Name {
		t.Errorf("tmp holds %v", got)
	}
}

// A draft that cannot be shredded keeps no task waiting, and goes as soon as it
// can.
func TestADraftThatStaysHindersNobody(t *testing.T) {
	b := newBench(t)
	b.opts.Poll = 20 * time.Millisecond
	d := b.offline("1-stays", false)
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
	id := b.ask("deploy", b.good("1.0.0"))
	if err := d.Close(); err != nil { // its writer has ended
		t.Fatal(err)
	}
	b.start()
	if _, m := b.staged(); m.TaskID != id {
		t.Errorf("manifest is %+v", m)
	}
	if len(b.list(staging.Tmp)) != 1 {
		t.Error("the draft was shredded: the test shows nothing")
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	b.eventually("the draft is gone", func() bool { return len(b.list(staging.Tmp)) == 0 })
}
