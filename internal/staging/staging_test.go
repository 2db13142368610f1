package staging_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

func open(t *testing.T, path string, role staging.Role) *staging.Dir {
	t.Helper()
	d, err := staging.Open(path, role)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

var claim = staging.Manifest{
	TaskID: "1397f0f1-0000-4000-8000-000000000001", Kind: task.KindDeploy, Token: "2026-11-23 13:39:15.000001+00",
	Release: staging.Release{ArtifactID: "a", Version: "2.5.0", ChartType: task.ChartCompose},
}

func file(path, content string, mode fs.FileMode) staging.File {
	sum := sha256.Sum256([]byte(content))
	return staging.File{Path: path, Type: staging.TypeFile, Size: int64(len(content)), Mode: mode, SHA256: hex.EncodeToString(sum[:])}
}

// stage publishes a small task and returns its handle in ready.
func stage(t *testing.T, d *staging.Dir) *staging.Task {
	t.Helper()
	draft, err := d.Create(staging.Name(time.Now(), claim.Kind, claim.Release.Version, claim.TaskID))
	if err != nil {
		t.Fatal(err)
	}
	if err := draft.SaveManifest(claim); err != nil {
		t.Fatal(err)
	}
	m := claim
	root := draft.Root()
	for _, step := range []error{
		root.Mkdir("payload", 0o700),
		root.WriteFile("payload/compose.yaml", []byte("services: {}\n"), 0o644),
		root.Symlink("compose.yaml", "payload/link"),
		root.WriteFile(".env", []byte("KEY=secret\n"), 0o600),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	m.Files = []staging.File{
		{Path: "payload", Type: staging.TypeDir, Mode: 0o700},
		file("payload/compose.yaml", "services: {}\n", 0o644),
		{Path: "payload/link", Type: staging.TypeSymlink, Target: "compose.yaml"},
		file(".env", "KEY=secret\n", 0o600),
	}
	if os.Geteuid() == 0 { // it belongs to whom the archive says
		if err := errors.Join(root.WriteFile("payload/given", []byte("x"), 0o640), root.Chown("payload/given", 999, 998)); err != nil {
			t.Fatal(err)
		}
		given := file("payload/given", "x", 0o640)
		given.Owner = &staging.FileOwner{UID: 999, GID: 998}
		m.Files = append(m.Files, given)
	}
	m.StagedAt = time.Now().UTC()
	task, err := draft.Publish(m)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func names(t *testing.T, d *staging.Dir, s staging.State) []string {
	t.Helper()
	tasks, err := d.List(s)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range tasks {
		out = append(out, x.Name)
	}
	return out
}

func TestTaskGoesThroughEveryState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "staging")
	fetcher := open(t, path, staging.Fetcher)
	runner := open(t, path, staging.Runner)
	notifier := open(t, path, staging.Notifier)

	name := stage(t, fetcher).Name
	ready, err := runner.List(staging.Ready)
	if err != nil || len(ready) != 1 || ready[0].Name != name {
		t.Fatalf("ready holds %v, %v; want %s", ready, err, name)
	}
	x := ready[0]
	if err := x.Start(); err != nil {
		t.Fatal(err)
	}
	m, err := x.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Verify(m); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Outcome(); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("outcome of a task without one: %v, want fs.ErrNotExist", err)
	}
	if err := x.SaveOutcome(task.Outcome{Schema: task.OutcomeSchema, TaskID: m.TaskID, Succeeded: true}); err != nil {
		t.Fatal(err)
	}
	if err := x.ShredSecrets(); err != nil {
		t.Fatal(err)
	}
	if err := x.Complete(); err != nil {
		t.Fatal(err)
	}
	done, err := notifier.List(staging.Done)
	if err != nil || len(done) != 1 {
		t.Fatalf("done holds %v, %v; want one task", done, err)
	}
	entries, err := os.ReadDir(done[0].Path())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != staging.ManifestFile && e.Name() != staging.OutcomeFile {
			t.Errorf("done still holds %s", e.Name())
		}
	}
	if err := done[0].Remove(); err != nil {
		t.Fatal(err)
	}
	for _, s := range staging.States {
		if got := names(t, notifier, s); len(got) != 0 {
			t.Errorf("%s holds %v in the end", s, got)
		}
	}
}

func TestVerifyFindsEveryDifference(t *testing.T) {
	changes := map[string]func(root *os.Root) error{
		"payload/compose.yaml\": has digest": func(r *os.Root) error {
			return r.WriteFile("payload/compose.yaml", []byte("services: []\n"), 0o644)
		},
		"payload/compose.yaml\": has 3 bytes":   func(r *os.Root) error { return r.WriteFile("payload/compose.yaml", []byte("abc"), 0o644) },
		"payload/compose.yaml\": has mode 0777": func(r *os.Root) error { return r.Chmod("payload/compose.yaml", 0o777) },
		"payload/link\": points to":             func(r *os.Root) error { return errors.Join(r.Remove("payload/link"), r.Symlink("x", "payload/link")) },
		"payload/extra\": is not in the":        func(r *os.Root) error { return r.WriteFile("payload/extra", nil, 0o600) },
		"values.yaml\": is not in the":          func(r *os.Root) error { return r.WriteFile("values.yaml", nil, 0o600) },
		"restore\": is not in the manifest":     func(r *os.Root) error { return r.Mkdir("restore", 0o700) },
		".env\": ":                              func(r *os.Root) error { return r.Remove(".env") },
		"payload/compose.yaml\": is not a regular": func(r *os.Root) error {
			return errors.Join(r.Remove("payload/compose.yaml"), r.Symlink("/etc/passwd", "payload/compose.yaml"))
		},
	}
	if os.Geteuid() == 0 {
		changes["belongs to user 12345"] = func(r *os.Root) error { return r.Chown(".env", 12345, -1) }
		changes["belongs to user 0 and group 0, not to 999 and 998"] = func(r *os.Root) error { return r.Chown("payload/given", 0, 0) }
	}
	for want, change := range changes {
		t.Run(want, func(t *testing.T) {
			d := open(t, t.TempDir(), staging.Fetcher)
			x := stage(t, d)
			m, err := x.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			if err := x.Verify(m); err != nil {
				t.Fatalf("untouched: %v", err)
			}
			root, err := x.Root()
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if err := change(root); err != nil {
				t.Fatal(err)
			}
			err = x.Verify(m)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("verify says %v, want %q", err, want)
			}
		})
	}
}

func TestSecondHolderIsRefused(t *testing.T) {
	path := t.TempDir()
	first := open(t, path, staging.Runner)
	_, err := staging.Open(path, staging.Runner)
	if err == nil || !strings.Contains(err.Error(), "another runner (process ") {
		t.Fatalf("second runner: %v", err)
	}
	open(t, path, staging.Fetcher)
	open(t, path, staging.Reader)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path, staging.Runner)
}

// A command that looks whether a component runs holds its lock for a moment,
// and must not keep it from starting.
func TestALookDoesNotKeepAComponentFromStarting(t *testing.T) {
	path := t.TempDir()
	open(t, path, staging.Fetcher) // creates the directories
	look, err := os.Open(filepath.Join(path, string(staging.Running)))
	if err != nil {
		t.Fatal(err)
	}
	defer look.Close()
	if err := syscall.Flock(int(look.Fd()), syscall.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	tries := 0
	t.Cleanup(staging.SetLockPause(func() {
		if tries++; tries == 3 {
			if err := syscall.Flock(int(look.Fd()), syscall.LOCK_UN); err != nil {
				t.Error(err)
			}
		}
	}))
	open(t, path, staging.Runner)
}

func TestDirectoryIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "staging")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	d := open(t, path, staging.Fetcher)
	x := stage(t, d)
	for _, p := range []string{path, filepath.Join(path, "ready"), x.Path()} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %04o, want 0700", p, info.Mode().Perm())
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := staging.Open(path, staging.Notifier); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("somebody else's directory: %v", err)
	}
}

func TestDraftsOutliveTheirFetcher(t *testing.T) {
	path := t.TempDir()
	first := open(t, path, staging.Fetcher)
	for _, claimed := range []bool{true, false} {
		d, err := first.Create("20261123T133915Z-deploy-2.5.0-1397f0f1")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Root().WriteFile(".env", []byte("KEY=secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		if claimed {
			if err := d.SaveManifest(claim); err != nil {
				t.Fatal(err)
			}
		}
		if left, err := first.Drafts(); err != nil || slices.ContainsFunc(left, func(x *staging.Draft) bool { return x.Task().Name == d.Task().Name }) {
			t.Errorf("a draft that is being written is taken for a leftover (%v)", err)
		} else {
			for _, x := range left {
				x.Close()
			}
		}
		if err := d.Close(); err != nil { // as the end of its fetcher does
			t.Fatal(err)
		}
	}
	first.Close()

	second := open(t, path, staging.Fetcher)
	drafts, err := second.Drafts()
	if err != nil || len(drafts) != 2 {
		t.Fatalf("found %d drafts, %v; want 2", len(drafts), err)
	}
	m, err := drafts[0].Manifest()
	if err != nil || m.Token != claim.Token {
		t.Fatalf("claim is %+v, %v", m, err)
	}
	if err := drafts[0].Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := drafts[0].Root().Stat(".env"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a draft that was reset still has its env: %v", err)
	}
	if _, err := drafts[0].Manifest(); err != nil {
		t.Errorf("a draft that was reset lost its manifest: %v", err)
	}
	if _, err := drafts[1].Manifest(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("draft without a manifest: %v, want fs.ErrNotExist", err)
	}
	if err := drafts[1].Remove(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, second, staging.Tmp); len(got) != 1 {
		t.Errorf("tmp holds %v, want the claimed draft alone", got)
	}
}

// moveTo puts a task where a crash may have left it.
func moveTo(t *testing.T, path string, x *staging.Task, to staging.State) {
	t.Helper()
	if err := os.Rename(x.Path(), filepath.Join(path, string(to), x.Name)); err != nil {
		t.Fatal(err)
	}
}

// Secrets are gone before the trash is reached: a crash on the way there leaves
// none where nobody looks for days.
func TestRemoveShredsSecretsFirst(t *testing.T) {
	path := t.TempDir()
	x := stage(t, open(t, path, staging.Fetcher))
	if err := os.MkdirAll(filepath.Join(path, "trash", x.Name, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := x.Remove(); err == nil || x.State != staging.Ready {
		t.Fatalf("Remove returns %v, the task is in %s: the test shows nothing", err, x.State)
	}
	for _, name := range []string{staging.EnvFile, staging.PayloadDir} {
		if _, err := os.Lstat(x.Path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

// What a Remove left in the trash can be swept without a restart.
func TestSweep(t *testing.T) {
	path := t.TempDir()
	n := open(t, path, staging.Notifier)
	x := stage(t, open(t, path, staging.Fetcher))
	moveTo(t, path, x, staging.Trash)
	for range 2 {
		if err := n.Sweep(); err != nil {
			t.Fatal(err)
		}
		if got := names(t, n, staging.Trash); len(got) != 0 {
			t.Errorf("trash holds %v", got)
		}
	}
}

func TestNotifierShredsTheTrashOfItsPredecessor(t *testing.T) {
	path := t.TempDir()
	f := open(t, path, staging.Fetcher)
	x := stage(t, f)
	moveTo(t, path, x, staging.Trash)
	n := open(t, path, staging.Notifier)
	if got := names(t, n, staging.Trash); len(got) != 0 {
		t.Errorf("trash holds %v", got)
	}
}

func TestNamesAreHarmless(t *testing.T) {
	at := time.Date(2026, 11, 23, 13, 39, 15, 0, time.UTC)
	for _, c := range []struct {
		kind, version, id, want string
	}{
		{"deploy", "2.5.0", "1397f0f1-11", "20261123T133915Z-deploy-2.5.0-1397f0f1"},
		{"rollback", "", "1397F0F1-11", "20261123T133915Z-rollback-1397f0f1"},
		{"../../x", "../../../etc", "../../../../", "20261123T133915Z-_.._x-_.._.._etc-"},
		{"deploy", "a/b\x00c\nd é", "x", "20261123T133915Z-deploy-a_b_c_d__-"},
	} {
		got := staging.Name(at, task.Kind(c.kind), c.version, task.ID(c.id))
		if !strings.HasPrefix(got, c.want) || strings.ContainsAny(got, "/\x00\n") || !filepath.IsLocal(got) {
			t.Errorf("name of %q %q %q is %q, want %q…", c.kind, c.version, c.id, got, c.want)
		}
	}
	if got := staging.Name(at, "deploy", strings.Repeat("v", 500), "1"); len(got) > 100 {
		t.Errorf("name has %d bytes", len(got))
	}
}

func TestTimelineSurvivesATornLine(t *testing.T) {
	d := open(t, t.TempDir(), staging.Fetcher)
	x := stage(t, d)
	add := func(text string) {
		if err := x.Append(task.Event{Time: time.Now(), Component: "test", Phase: task.PhaseReady, Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	add("one")
	f, err := os.OpenFile(x.Path(staging.EventsFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("{\"time\": \n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	add(strings.Repeat("x\x00", 100_000))
	events, err := x.Events()
	if err != nil || len(events) != 2 {
		t.Fatalf("read %d events, %v; want 2", len(events), err)
	}
	if events[0].Text != "one" || !json.Valid([]byte(`"`+events[1].Text+`"`)) || len(events[1].Text) > task.MaxMessage {
		t.Errorf("events are %.20q and %d bytes", events[0].Text, len(events[1].Text))
	}
}

func TestWatcherHintsOnArrivalAndAtOnce(t *testing.T) {
	path := t.TempDir()
	f := open(t, path, staging.Fetcher)
	r := open(t, path, staging.Runner)
	w := r.Watch(time.Hour, staging.Ready)
	defer w.Stop()
	if w.Err() != nil {
		t.Fatal(w.Err())
	}
	<-w.Hints() // the first look
	stage(t, f)
	<-w.Hints()
	if got := names(t, r, staging.Ready); len(got) != 1 {
		t.Errorf("ready holds %v after the hint", got)
	}
}

func TestWatcherHintsByTimerWithoutEvents(t *testing.T) {
	d := open(t, t.TempDir(), staging.Runner)
	w := d.Watch(time.Millisecond)
	defer w.Stop()
	for range 3 {
		<-w.Hints()
	}
}
