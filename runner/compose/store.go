package compose

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

const (
	releasesDir = "releases"
	currentLink = "current"
	lockFile    = ".lock"
	tempPrefix  = ".tmp-"  // of a bundle being copied, and of a new current link
	keptPrefix  = ".kept-" // + bundle name: its files' digests, as old as the copy
	dirMode     = 0o711    // who is told a path may use it, nobody may list
)

// lockPoll is how often a lock held by another process is tried. Its owner is
// about to end: flock has no event to wait for that could be given up.
const lockPoll = 50 * time.Millisecond

// store is the working directory: the bundles that were kept, and the lock
// that lets one process at a time change the project. The caller closes it.
type store struct {
	root     *os.Root // the working directory
	releases *os.Root
	dir      string // real path of the releases directory
	lock     *os.File
}

// openStore opens the working directory dir, creates what is missing of it,
// waits for its lock and clears away what a crash left.
func openStore(ctx context.Context, dir string) (_ *store, err error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("create the working directory: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("resolve the working directory: %w", err)
	}
	s := &store{dir: filepath.Join(real, releasesDir)}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.root, err = os.OpenRoot(real); err != nil {
		return nil, fmt.Errorf("open the working directory: %w", err)
	}
	if err := s.acquire(ctx); err != nil {
		return nil, err
	}
	if err := s.root.Mkdir(releasesDir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create %s: %w", s.dir, err)
	}
	if err := checkDir(s.dir); err != nil {
		return nil, err
	}
	if s.releases, err = s.root.OpenRoot(releasesDir); err != nil {
		return nil, fmt.Errorf("open %s: %w", s.dir, err)
	}
	return s, s.clear()
}

// checkDir refuses a directory that somebody else could have prepared, or could
// change: the reference's default lies in /tmp, where everybody may create it first.
func checkDir(dir string) error {
	uid := os.Geteuid()
	link, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at the working directory: %w", err)
	}
	if link.Mode()&fs.ModeSymlink != 0 && owner(link) != uid && owner(link) != 0 {
		return fmt.Errorf("%s is a symbolic link of uid %d: remove it, or set compose.working_dir to a directory of the agent's own", dir, owner(link))
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Errorf("look at the working directory: %w", err)
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory: set compose.working_dir to one", dir)
	case owner(info) != uid:
		return fmt.Errorf("%s belongs to uid %d, not to the agent's uid %d: set compose.working_dir to a directory of the agent's own", dir, owner(info), uid)
	case info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0:
		return fmt.Errorf("%s may be written by others (mode %04o): run chmod go-w on it", dir, info.Mode().Perm())
	}
	return nil
}

func owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// acquire takes the lock, waiting for a process that has it to be gone.
func (s *store) acquire(ctx context.Context) error {
	f, err := s.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock of the working directory: %w", err)
	}
	s.lock = f
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock the working directory: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock the working directory: another deployment holds %s: %w", filepath.Join(s.root.Name(), lockFile), context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// close releases the lock.
func (s *store) close() {
	if s.releases != nil {
		_ = s.releases.Close() // nothing was written through it
	}
	if s.root != nil {
		_ = s.root.Close()
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// clear removes copies and links that were never finished.
func (s *store) clear() error {
	for _, root := range []*os.Root{s.root, s.releases} {
		entries, err := fs.ReadDir(root.FS(), ".")
		if err != nil {
			return fmt.Errorf("list %s: %w", root.Name(), err)
		}
		for _, e := range entries {
			of, isStamp := strings.CutPrefix(e.Name(), keptPrefix)
			if !strings.HasPrefix(e.Name(), tempPrefix) && !durable.IsTemp(e.Name()) && (!isStamp || s.has(of)) {
				continue
			}
			if err := root.RemoveAll(e.Name()); err != nil {
				return fmt.Errorf("remove the unfinished %s: %w", e.Name(), err)
			}
		}
	}
	return nil
}

func bundleName(r deployment.Release) string { return deployment.BundleName(r.Version, r.SHA256) }

func (s *store) path(name string) string { return filepath.Join(s.dir, name) }

// has reports whether the bundle is kept, complete.
func (s *store) has(name string) bool {
	info, err := s.releases.Lstat(name)
	return err == nil && info.IsDir()
}

// keep makes sure that r's bundle is in the store and returns its name. fresh
// is true when it was not there before; ignoredEnv when a .env of the release
// was left out: the env comes from the database.
func (s *store) keep(ctx context.Context, r deployment.Release) (name string, fresh, ignoredEnv bool, err error) {
	name = bundleName(r)
	if s.has(name) {
		return name, false, false, nil
	}
	if r.PayloadDir == "" {
		return name, false, false, fmt.Errorf("the bundle of release %s is no longer kept in %s", r.Version, s.dir)
	}
	if ignoredEnv, err = s.copy(ctx, r.PayloadDir, name); err != nil {
		return name, false, false, fmt.Errorf("keep the bundle of release %s: %w", r.Version, err)
	}
	return name, true, ignoredEnv, nil
}

func (s *store) copy(ctx context.Context, payload, name string) (ignoredEnv bool, err error) {
	src, err := os.OpenRoot(payload)
	if err != nil {
		return false, err
	}
	defer src.Close()
	projectDir, _, err := findFiles(src)
	if err != nil {
		return false, err
	}
	skip := filepath.Join(projectDir, ".env")

	temp := tempPrefix + name + "-" + rand.Text()[:8]
	defer func() {
		if err != nil {
			err = errors.Join(err, s.releases.RemoveAll(temp))
		}
	}()
	digests := map[string]string{}
	var modes []func() error // of directories: one may be read-only
	err = fs.WalkDir(src.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if path == skip {
			ignoredEnv = true
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		to := filepath.Join(temp, path)
		switch {
		case d.IsDir():
			mode := info.Mode().Perm()
			if path == "." {
				mode = 0o755 // a bundle may mount itself; its parents keep strangers out
			}
			modes = append(modes, func() error { return s.releases.Chmod(to, mode) })
			return s.releases.Mkdir(to, 0o700)
		case info.Mode().IsRegular():
			digests[path], err = s.copyFile(src, path, to, info.Mode().Perm())
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := src.Readlink(path)
			if err != nil {
				return err
			}
			if digests[path], err = digestOf(src, path); err != nil {
				return err
			}
			return s.releases.Symlink(target, to)
		default:
			return fmt.Errorf("%s is neither file, directory nor symbolic link", path)
		}
	})
	if err != nil {
		return false, err
	}
	for i := len(modes) - 1; i >= 0; i-- {
		if err := modes[i](); err != nil {
			return false, err
		}
	}
	if err := durable.SyncTree(s.releases, temp); err != nil {
		return false, err
	}
	if err := s.stamp(name, digests); err != nil {
		return false, err
	}
	// The new name is what says that the copy is complete.
	return ignoredEnv, durable.Rename(s.releases, temp, s.releases, name)
}

// copyFile copies a file and returns its digest.
func (s *store) copyFile(src *os.Root, from, to string, mode fs.FileMode) (string, error) {
	in, err := src.Open(from)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := s.releases.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, sum), in)
	return hex.EncodeToString(sum.Sum(nil)), errors.Join(err, out.Chmod(mode), out.Close())
}

// stamp records when the bundle was copied, since what changed in it later was
// changed by its containers, and the digests of its files.
func (s *store) stamp(name string, digests map[string]string) error {
	data, err := json.Marshal(digests)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.releases, keptPrefix+name, data, 0o600); err != nil {
		return err
	}
	now := time.Now()
	return s.releases.Chtimes(keptPrefix+name, now, now)
}

// setCurrent makes the link `current` point at the bundle, for people.
func (s *store) setCurrent(name string) error {
	temp := tempPrefix + currentLink + "-" + rand.Text()[:8]
	if err := s.root.Symlink(filepath.Join(releasesDir, name), temp); err != nil {
		return fmt.Errorf("link %s to %s: %w", currentLink, name, err)
	}
	if err := durable.Rename(s.root, temp, s.root, currentLink); err != nil {
		return fmt.Errorf("link %s to %s: %w", currentLink, name, err)
	}
	return nil
}
