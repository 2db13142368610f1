package protocol_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// TestCheckWorkingDir: a directory of somebody else is refused, one in which a former
// version worked is not.
func TestCheckWorkingDir(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare func(dir string) error
		want    string
	}{
		{"missing", func(string) error { return nil }, ""},
		{"empty", func(dir string) error { return os.Mkdir(dir, 0o755) }, ""},
		{"of a former version", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/releases/1.0-abababababab", 0o711), os.WriteFile(dir+"/.lock", nil, 0o600),
				os.Symlink("releases/1.0-abababababab", dir+"/current"), os.Mkdir(dir+"/of-a-mount", 0o755))
		}, ""},
		{"releases of something else", func(dir string) error { return os.MkdirAll(dir+"/releases/20260101", 0o755) }, `it holds "releases"`},
		{"a project", func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/data", 0o755), os.WriteFile(dir+"/compose.yaml", nil, 0o644))
		}, `compose.working_dir %D is in use by something else: it holds "compose.yaml", "data"`},
		{"open to all", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777)) }, "chmod go-w"},
		{"made by somebody else", func(dir string) error {
			if os.Geteuid() != 0 {
				return os.WriteFile(dir, nil, 0o600)
			}
			return errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, 12345, 12345))
		}, "%D "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "work")
			if err := c.prepare(dir); err != nil {
				t.Fatal(err)
			}
			err := protocol.CheckWorkingDir(dir)
			if want := strings.ReplaceAll(c.want, "%D", dir); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
			if _, err := os.Lstat(filepath.Join(dir, ".wrktalk-agent")); err == nil {
				t.Error("it was marked")
			}
		})
	}
}

// TestKeeps: what went over from the former layout is a link there.
func TestKeeps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(dir+"/releases/1-ab", 0o700), os.MkdirAll(dir+"/bundles/2-ab", 0o700), os.Symlink(dir, dir+"/releases/3-ab")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]bool{"1-ab": {false, true}, "2-ab": {true, true}, "3-ab": {false, false}} {
		if got := [2]bool{protocol.Keeps(dir, name, false), protocol.Keeps(dir, name, true)}; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
