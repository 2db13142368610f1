package compose

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

func open(t *testing.T, dir string) *store {
	t.Helper()
	s, err := openStore(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func TestKeep(t *testing.T) {
	t.Parallel()
	payload := t.TempDir()
	write := func(name string, mode fs.FileMode) {
		t.Helper()
		path := filepath.Join(payload, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(path, []byte(name), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("app/compose.yaml", 0o644)
	write("app/.env", 0o600)
	write("app/run.sh", 0o755)
	write("app/sub/.env", 0o640)
	if err := errors.Join(
		os.Symlink("../run.sh", filepath.Join(payload, "app/sub/link")),
		os.Chmod(filepath.Join(payload, "app/sub"), 0o750),
		os.Chmod(payload, 0o700),
	); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "a", "work")
	s := open(t, dir)
	rel := protocol.Release{Version: "../1.0 beta", SHA256: "0123456789abcdef", PayloadDir: payload}
	name, fresh, ignored, err := s.keep(context.Background(), rel, rowEnv{given: true})
	if err != nil || name != "1.0-beta-0123456789ab" || !fresh || !ignored {
		t.Fatal(name, fresh, ignored, err)
	}
	for file, mode := range map[string]fs.FileMode{
		".": fs.ModeDir | 0o755, "app/compose.yaml": 0o644, "app/run.sh": 0o755, "app/sub": fs.ModeDir | 0o750, "app/sub/.env": 0o640,
	} {
		info, err := os.Lstat(filepath.Join(dir, protocol.BundlesDir, name, file))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode {
			t.Errorf("%s has mode %s, not %s", file, info.Mode(), mode)
		}
	}
	if target, err := os.Readlink(filepath.Join(dir, protocol.BundlesDir, name, "app/sub/link")); err != nil || target != "../run.sh" {
		t.Errorf("link to %q, %v", target, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, protocol.BundlesDir, name, "app/.env")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the bundle's .env was kept: %v", err)
	}
	rel.PayloadDir = "" // now from the store
	if _, fresh, _, err := s.keep(context.Background(), rel, rowEnv{}); err != nil || fresh {
		t.Error(fresh, err)
	}
}

func TestKeepRefusesWhatIsNoFile(t *testing.T) {
	t.Parallel()
	payload := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(payload, "compose.yaml"), nil, 0o600),
		syscall.Mkfifo(filepath.Join(payload, "pipe"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := open(t, dir)
	_, _, _, err := s.keep(context.Background(), protocol.Release{Version: "1", SHA256: "ab", PayloadDir: payload}, rowEnv{})
	if err == nil || !strings.Contains(err.Error(), "pipe is neither") {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, protocol.BundlesDir)); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestOpenClearsLeftovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir).close()
	for _, d := range []string{"bundles/.tmp-1.0-x/sub", "bundles/1.0-abc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Symlink("releases/x", filepath.Join(dir, ".tmp-current-x")),
		os.WriteFile(filepath.Join(dir, "bundles/.kept-1.0-abc"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "bundles/.kept-0.9-abc"), nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	var left []string
	for _, d := range []string{"", "bundles"} {
		entries, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, e.Name())
		}
	}
	if got := strings.Join(left, " "); got != ".lock .wrktalk-agent bundles .kept-1.0-abc 1.0-abc" {
		t.Errorf("left: %s", got)
	}
}

// TestOpenRefuses: whoever could have prepared the directory could make the
// engine mount anything.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const stranger = 12345
	for _, c := range []struct {
		name    string
		prepare func(dir string) error
		want    string
	}{
		{"foreign directory", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, stranger, stranger))
		}, "belongs to uid 12345"},
		{"foreign link", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"-real", 0o755), os.Symlink(dir+"-real", dir), os.Lchown(dir, stranger, stranger))
		}, "symbolic link of uid 12345"},
		{"open to all", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777))
		}, "chmod go-w"},
		{"foreign releases in a sticky directory", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777|fs.ModeSticky),
				os.WriteFile(dir+"/.lock", nil, 0o600), os.Mkdir(dir+"/releases", 0o755), os.Chown(dir+"/releases", stranger, stranger))
		}, "belongs to uid 12345"},
		{"somebody's files", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/docker-compose.yaml", nil, 0o644))
		}, "is in use by something else: it holds \"docker-compose.yaml\""},
		{"file", func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, "not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "work")
			if err := c.prepare(dir); err != nil {
				t.Fatal(err)
			}
			s, err := openStore(context.Background(), dir)
			if err == nil {
				s.close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := open(t, dir)
	late := errors.New("too late")
	ctx, cancel := context.WithTimeoutCause(context.Background(), 3*lockPoll, late)
	defer cancel()
	if s, err := openStore(ctx, dir); !errors.Is(err, late) {
		if err == nil {
			s.close()
		}
		t.Fatalf("a second one got the lock: %v", err)
	}
	opened := make(chan error, 1)
	go func() {
		s, err := openStore(context.Background(), dir)
		if err == nil {
			s.close()
		}
		opened <- err
	}()
	first.close()
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestLastKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	now := time.Now()
	for i, name := range []string{"b", "c", "a"} {
		if err := errors.Join(s.bundles.Mkdir(name, 0o755), s.stamp(name, nil),
			s.bundles.Chtimes(keptPrefix+name, now, now.Add(time.Duration(-i)*time.Hour))); err != nil {
			t.Fatal(err)
		}
	}
	list := s.listIn(protocol.BundlesDir)
	if len(list) != 3 || list[0].name != "b" || list[1].name != "c" || list[2].name != "a" {
		t.Error(list)
	}
}
