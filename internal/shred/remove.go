package shred

import (
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

const (
	chunkSize = 1 << 20 // bytes overwritten with one call
	batchSize = 256     // directory entries read with one call

	maxFailures = 10 // errors reported one by one; more are counted
)

// shredder carries the buffer from file to file. It is used by one goroutine.
type shredder struct {
	prefix string // base name of the root, leads every fault label
	source *rand.ChaCha8
	buf    []byte

	failures []error // the first maxFailures
	failed   int     // how many there were
}

// fail notes that something could not be done as it should.
func (s *shredder) fail(shown string, err error) {
	if s.failed++; s.failed <= maxFailures {
		s.failures = append(s.failures, fmt.Errorf("shred %s: %w", shown, err))
	}
}

// err joins what was noted.
func (s *shredder) err() error {
	if more := s.failed - maxFailures; more > 0 {
		s.failures = append(s.failures, fmt.Errorf("shred: %d more entries could not be shredded", more))
	}
	return errors.Join(s.failures...)
}

// entry removes base, an entry of dir, of any type. shown is its path for people.
func (s *shredder) entry(dir *os.File, base, shown string) {
	st, err := statAt(dir, base)
	switch {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		s.fail(shown, err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		s.dir(dir, base, shown, st)
	default:
		s.file(dir, base, shown)
	}
}

// dir removes the directory base and everything below it.
func (s *shredder) dir(parent *os.File, base, shown string, st unix.Stat_t) {
	var above unix.Stat_t
	if err := unix.Fstat(int(parent.Fd()), &above); err != nil {
		s.fail(shown, err)
		return
	}
	if st.Dev != above.Dev {
		s.fail(shown, errors.New("another file system is mounted there; unmount it first"))
		return
	}
	if err := permit(parent, base, st.Mode, 0o700); errors.Is(err, unix.ENOENT) {
		return // somebody else shreds it, too
	} else if err != nil {
		s.fail(shown, fmt.Errorf("make directory accessible: %w", err))
		return
	}
	d, err := openAt(parent, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		return
	}
	if err != nil {
		s.fail(shown, err)
		return
	}
	defer d.Close()

	failed := s.failed
	// A directory that is read while entries vanish may skip some: read again
	// until a reading finds nothing.
	for s.entries(d, shown) > 0 && s.failed == failed {
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			s.fail(shown, err)
		}
	}
	if s.failed == failed {
		s.unlink(parent, base, shown, unix.AT_REMOVEDIR)
	}
}

// entries removes what one reading of d finds, and returns how many it found.
func (s *shredder) entries(d *os.File, shown string) (found int) {
	for {
		names, err := d.Readdirnames(batchSize)
		for _, name := range names {
			found++
			s.entry(d, name, shown+"/"+name)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // the directory itself is gone
			return found
		}
		if err != nil {
			s.fail(shown, err)
			return found
		}
	}
}

// file removes base, which is anything but a directory, and overwrites it first
// where that is right.
func (s *shredder) file(dir *os.File, base, shown string) {
	st, err := statAt(dir, base)
	if errors.Is(err, unix.ENOENT) {
		return
	}
	if err != nil {
		s.fail(shown, err)
		return
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		s.fail(shown, unix.EISDIR)
		return
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 1 && st.Size > 0 {
		err := s.erase(dir, base, shown, st)
		if errors.Is(err, unix.ENOENT) {
			return
		}
		if err != nil {
			s.fail(shown, err)
			if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
				return
			}
		}
	}
	s.unlink(dir, base, shown, 0)
}

// erase overwrites and truncates the regular file base.
func (s *shredder) erase(dir *os.File, base, shown string, st unix.Stat_t) error {
	if err := permit(dir, base, st.Mode, 0o600); err != nil {
		return fmt.Errorf("make writable: %w", err)
	}
	f, err := openAt(dir, base, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return err
	}
	if now.Dev != st.Dev || now.Ino != st.Ino || now.Nlink > 1 || now.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("file was replaced while being shredded")
	}
	if err := s.step("overwrite", shown, func() error { return s.overwrite(f, now.Size) }); err != nil {
		return err
	}
	if err := s.step("sync", shown, f.Sync); err != nil {
		return err
	}
	return s.step("truncate", shown, func() error { return f.Truncate(0) })
}

// overwrite replaces the first size bytes of f by random ones.
func (s *shredder) overwrite(f *os.File, size int64) error {
	if s.buf == nil {
		var seed [32]byte
		_, _ = cryptorand.Read(seed[:]) // documented never to fail
		s.source = rand.NewChaCha8(seed)
		s.buf = make([]byte, chunkSize)
	}
	for off := int64(0); off < size; {
		chunk := s.buf[:min(chunkSize, size-off)]
		_, _ = s.source.Read(chunk) // documented never to fail
		n, err := f.WriteAt(chunk, off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

func (s *shredder) unlink(dir *os.File, base, shown string, flags int) {
	err := s.step("unlink", shown, func() error { return unix.Unlinkat(int(dir.Fd()), base, flags) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		s.fail(shown, fmt.Errorf("unlink: %w", err))
	}
}

func (s *shredder) step(name, shown string, f func() error) error {
	return fault.Step("shred."+name+":"+s.prefix+"/"+shown, f)
}
