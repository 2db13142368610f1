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
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

const (
	currentLink = "current"
	lockFile    = ".lock"
	tempPrefix  = ".tmp-"  // of a bundle being copied, and of a new current link
	keptPrefix  = ".kept-" // + bundle name: its files' digests, as old as the copy
	dirMode     = 0o700    // the engine mounts as root; nobody else has business here
)

// lockPoll is how often a lock held by another process is tried. Its owner is
// about to end: flock has no event to wait for that could be given up.
const lockPoll = 50 * time.Millisecond

// store is the working directory: the bundles that were kept, the project
// directories that containers mount, and the lock that lets one process at a time
// change them. The caller closes it.
type store struct {
	root    *os.Root // the working directory
	bundles *os.Root
	dir     string // real path of the working directory
	lock    *os.File
}

// openStore opens the working directory dir, if it is the agent's, creates what is
// missing of it, waits for its lock and clears away what a crash left.
func openStore(ctx context.Context, dir string) (_ *store, err error) {
	if err := protocol.CheckWorkingDir(dir); err != nil {
		return nil, err
	}
	root, err := protocol.WorkingDirs.Open(dir)
	if err != nil {
		return nil, err
	}
	s := &store{root: root}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("resolve the working directory: %w", err)
	}
	if err := s.acquire(ctx); err != nil {
		return nil, err
	}
	if s.bundles, err = s.open(protocol.BundlesDir); err != nil {
		return nil, err
	}
	if err := protocol.CheckOwner(filepath.Join(s.dir, protocol.FormerDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return s, s.clear()
}

// open opens a directory of the working directory, and creates it where it is
// missing.
func (s *store) open(name string) (*os.Root, error) {
	path := filepath.Join(s.dir, name)
	if err := s.root.Mkdir(name, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	if err := protocol.CheckOwner(path); err != nil {
		return nil, err
	}
	root, err := s.root.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return root, nil
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
	if s.bundles != nil {
		_ = s.bundles.Close() // nothing was written through it
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
	for _, dir := range []string{".", protocol.BundlesDir, recordsDir} {
		entries, err := fs.ReadDir(s.root.FS(), dir)
		if dir == recordsDir && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", filepath.Join(s.dir, dir), err)
		}
		for _, e := range entries {
			of, isStamp := strings.CutPrefix(e.Name(), keptPrefix)
			if !strings.HasPrefix(e.Name(), tempPrefix) && !durable.IsTemp(e.Name()) && (!isStamp || s.has(of)) {
				continue
			}
			if err := s.root.RemoveAll(path.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove the unfinished %s: %w", e.Name(), err)
			}
		}
	}
	return nil
}

// path returns where the bundle is kept.
func (s *store) path(name string) string { return filepath.Join(s.dir, protocol.BundlesDir, name) }

// has reports whether the bundle is kept, complete.
func (s *store) has(name string) bool {
	info, err := s.bundles.Lstat(name)
	return err == nil && info.IsDir()
}

// keep makes sure that r's bundle is in the store and returns its name. created
// is true when it was not there before; ignoredEnv when a .env of the release
// was left out: the row's env takes its place.
func (s *store) keep(ctx context.Context, r protocol.Release, env rowEnv) (name string, created, ignoredEnv bool, err error) {
	name = r.Bundle()
	if s.has(name) {
		return name, false, false, nil
	}
	payload := r.PayloadDir
	if payload == "" {
		if payload = s.formerBundle(name); payload == "" {
			return name, false, false, fmt.Errorf("the bundle of release %s is no longer kept in %s", r.Version, filepath.Dir(s.path(name)))
		}
	}
	var digests map[string]string
	if r.PayloadDir == "" {
		digests = s.formerDigests(name)
	}
	if ignoredEnv, err = s.copy(ctx, payload, name, env, digests); err != nil {
		return name, false, false, fmt.Errorf("keep the bundle of release %s: %w", r.Version, err)
	}
	return name, true, ignoredEnv, nil
}

// copy copies a release into the store. With only, it copies the files that only has
// the digests of, and what leads to them.
func (s *store) copy(ctx context.Context, payload, name string, env rowEnv, only map[string]string) (ignoredEnv bool, err error) {
	src, err := os.OpenRoot(payload)
	if err != nil {
		return false, err
	}
	defer src.Close()
	located, err := locate(src, env)
	if err != nil {
		return false, err
	}
	var skip []string
	if env.given {
		skip = located.envNames()
	}

	temp := tempPrefix + name + "-" + rand.Text()[:8]
	defer func() {
		if err != nil {
			err = errors.Join(err, s.bundles.RemoveAll(temp))
		}
	}()
	digests, leading := map[string]string{}, map[string]bool{".": true}
	for file := range only {
		for dir := file; dir != "."; dir = path.Dir(dir) {
			leading[dir] = true
		}
	}
	var modes []func() error // of directories: one may be read-only
	err = fs.WalkDir(src.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if slices.Contains(skip, name) {
			ignoredEnv = true
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if only != nil && !leading[name] {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		to := filepath.Join(temp, name)
		switch {
		case d.IsDir():
			mode := info.Mode().Perm()
			if name == "." {
				mode |= 0o755 // a bundle may mount itself; its parents keep strangers out
			}
			modes = append(modes, func() error {
				return errors.Join(chown(info, func(uid, gid int) error { return s.bundles.Chown(to, uid, gid) }), s.bundles.Chmod(to, mode))
			})
			return s.bundles.Mkdir(to, 0o700)
		case info.Mode().IsRegular():
			digests[name], err = s.copyFile(src, name, to, info)
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := src.Readlink(name)
			if err != nil {
				return err
			}
			if digests[name], err = digestOf(src, name); err != nil {
				return err
			}
			if err := s.bundles.Symlink(target, to); err != nil {
				return err
			}
			return chown(info, func(uid, gid int) error { return s.bundles.Lchown(to, uid, gid) })
		default:
			return fmt.Errorf("%s is neither file, directory nor symbolic link", name)
		}
	})
	if err != nil {
		return false, err
	}
	for _, chmod := range slices.Backward(modes) {
		if err := chmod(); err != nil {
			return false, err
		}
	}
	if err := durable.SyncTree(s.bundles, temp); err != nil {
		return false, err
	}
	for file, digest := range only { // what it was when it was kept first
		digests[file] = digest
	}
	if err := s.stamp(name, digests); err != nil {
		return false, err
	}
	// The new name is what says that the copy is complete.
	return ignoredEnv, durable.Rename(s.bundles, temp, s.bundles, name)
}

// chown gives what was made just now to the owner that info names, which only root
// finds to be another one.
func chown(info fs.FileInfo, give func(uid, gid int) error) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || st.Uid == 0 && int(st.Gid) == os.Getegid() {
		return nil
	}
	return give(int(st.Uid), int(st.Gid))
}

// copyFile copies a file with its owner and mode, and returns its digest.
func (s *store) copyFile(src *os.Root, from, to string, info fs.FileInfo) (string, error) {
	in, err := src.Open(from)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := s.bundles.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, sum), in)
	return hex.EncodeToString(sum.Sum(nil)), errors.Join(err, chown(info, out.Chown), out.Chmod(info.Mode().Perm()), out.Close())
}

// stamp records when the bundle was copied, since what changed in it later was
// changed by its containers, and the digests of its files.
func (s *store) stamp(name string, digests map[string]string) error {
	data, err := json.Marshal(digests)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.bundles, keptPrefix+name, data, 0o600); err != nil {
		return err
	}
	now := time.Now()
	return s.bundles.Chtimes(keptPrefix+name, now, now)
}

// setCurrent makes the link `current` point at the bundle, for people.
func (s *store) setCurrent(name string) error {
	temp := tempPrefix + currentLink + "-" + rand.Text()[:8]
	if err := s.root.Symlink(filepath.Join(protocol.BundlesDir, name), temp); err != nil {
		return fmt.Errorf("link %s to %s: %w", currentLink, name, err)
	}
	if err := durable.Rename(s.root, temp, s.root, currentLink); err != nil {
		return fmt.Errorf("link %s to %s: %w", currentLink, name, err)
	}
	return nil
}
