package staging_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

// Any one file of a task's directory may be garbage: it is an error, and nothing outside
// the directory is read.
func FuzzDocuments(f *testing.F) {
	for _, s := range []string{
		"", "{}", "null", "[]", `{"schema":1}`, `{"schema":2,"task_id":"x","files":[{"path":"../../x","type":"file"}]}`,
		`{"attempts":-1}`, "{\"time\":\"x\"}\n{}\nnull\n", "\x00\xff", `{"schema":1,"finished_at":"0001-01-01T00:00:00Z"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := open(t, filepath.Join(t.TempDir(), "staging"), staging.Fetcher)
		draft, err := d.Create(staging.Name(time.Now(), claim.Kind, claim.Release.Version, claim.TaskID))
		if err != nil {
			t.Fatal(err)
		}
		defer draft.Root().Close()
		for _, name := range []string{staging.ManifestFile, staging.OutcomeFile, staging.AttemptsFile, staging.EventsFile} {
			if err := draft.Root().WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		tasks, err := d.List(staging.Tmp)
		if err != nil || len(tasks) != 1 {
			t.Fatal(tasks, err)
		}
		if m, err := tasks[0].Manifest(); err == nil {
			if tasks[0].Verify(m) == nil && len(m.Files) > 0 {
				t.Errorf("%q lists files that are not there, and passes", data)
			}
		}
		_, _ = tasks[0].Outcome() // these may fail or not
		_, _ = tasks[0].Attempts()
		_, _ = tasks[0].Events()
	})
}

// What a task is called makes a name for its directory that is one, whatever the version.
func FuzzName(f *testing.F) {
	for _, s := range []string{"", "1.2.3", "../../x", "a/b\x00c", "ä…", ".", string(make([]byte, 300))} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, version string) {
		name := staging.Name(time.Unix(0, 0), claim.Kind, version, claim.TaskID)
		if name != filepath.Base(name) || name[0] == '.' || len(name) > 255 {
			t.Errorf("%q is called %q", version, name)
		}
		if err := os.Mkdir(filepath.Join(t.TempDir(), name), 0o700); err != nil {
			t.Error(err)
		}
	})
}
