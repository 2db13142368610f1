package staging_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

func TestQuarantineKeepsNoSecret(t *testing.T) {
	d := open(t, t.TempDir(), staging.Runner)
	x := stage(t, d)
	if err := x.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(x.Path(staging.ManifestFile), []byte(`{"schema": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := x.Manifest()
	if err == nil || !strings.Contains(err.Error(), "schema 99") {
		t.Fatalf("manifest of the future: %v", err)
	}
	if err := x.Quarantine(err.Error()); err != nil {
		t.Fatal(err)
	}
	if x.State != staging.Quarantine {
		t.Fatalf("state is %s", x.State)
	}
	reason, err := os.ReadFile(x.Path(staging.ReasonFile))
	if err != nil || !strings.Contains(string(reason), "schema 99") {
		t.Errorf("reason is %q, %v", reason, err)
	}
	for _, name := range []string{".env", "payload"} {
		if _, err := os.Lstat(x.Path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

// The quarantine keeps the newest ones, and the one that just came.
func TestQuarantineKeepsTheNewest(t *testing.T) {
	d := open(t, t.TempDir(), staging.Fetcher)
	set := func(name string) {
		t.Helper()
		draft, err := d.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := draft.SaveManifest(claim); err != nil {
			t.Fatal(err)
		}
		x, err := draft.Publish(claim)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Quarantine("a test"); err != nil {
			t.Fatal(err)
		}
	}
	for i := range staging.MaxQuarantine + 3 {
		set(fmt.Sprintf("20261123T1339%02dZ-deploy-1", i))
	}
	set("20250101T000000Z-deploy-0")
	got := names(t, d, staging.Quarantine)
	if len(got) != staging.MaxQuarantine || got[0] != "20250101T000000Z-deploy-0" || got[1] != "20261123T133904Z-deploy-1" {
		t.Errorf("quarantine holds %v", got)
	}
}

// A manifest that its reader would refuse is not written.
func TestManifestsAreWrittenAsLongAsTheyAreRead(t *testing.T) {
	d := open(t, t.TempDir(), staging.Fetcher)
	draft, err := d.Create("20261123T133915Z-deploy-1")
	if err != nil {
		t.Fatal(err)
	}
	m := claim
	for range staging.IndentedFiles + 1 {
		m.Files = append(m.Files, staging.File{Path: "payload/<&>", Type: staging.TypeDir, Mode: 0o700})
	}
	if err := draft.SaveManifest(m); err != nil {
		t.Fatal(err)
	}
	data, err := draft.Root().ReadFile(staging.ManifestFile)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), "\n"); n != 1 || !strings.Contains(string(data), "<&>") {
		t.Errorf("a long manifest takes %d lines: %.300s", n, data)
	}

	// As large as it may be, and one byte more.
	t.Cleanup(staging.SetMaxDocument(len(data)))
	if err := draft.SaveManifest(m); err != nil {
		t.Fatal(err)
	}
	if got, err := draft.Manifest(); err != nil || len(got.Files) != len(m.Files) {
		t.Errorf("the largest manifest: %v", err)
	}
	m.Files[0].Path += "x"
	if _, err := draft.Publish(m); !errors.Is(err, staging.ErrTooLarge) {
		t.Errorf("a manifest that is too large: %v", err)
	}
	if got, err := draft.Manifest(); err != nil || got.Files[0].Path != "payload/<&>" {
		t.Errorf("the manifest before was lost: %v", err)
	}
}
