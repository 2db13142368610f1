//go:build faultinject

package shred

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// TestInterruptedAnywhereFinishesLater stops at each step in turn, as a crash
// would, and calls again.
func TestInterruptedAnywhereFinishesLater(t *testing.T) {
	for i := 0; ; i++ {
		root, dir := newRoot(t)
		write(t, filepath.Join(dir, "t/d/f"), []byte("secret"), 0o600)
		n := 0
		restore := fault.Set(func(string) error {
			if n++; n > i {
				return syscall.EIO
			}
			return nil
		})
		err := Tree(root, "t")
		restore()
		if n == i { // all steps were passed
			if err != nil || i != 6 {
				t.Errorf("after %d steps: %v, want 6 and none", i, err)
			}
			return
		}
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("stopped at step %d: %v, want EIO", i, err)
		}
		if err := Tree(root, "t"); err != nil {
			t.Errorf("after a stop at step %d: %v", i, err)
		}
		missing(t, filepath.Join(dir, "t"))
	}
}

// TestOrderOfSteps looks at the inode at each step: the secret must be
// overwritten at full length before the file is truncated, and truncated before
// the name goes.
func TestOrderOfSteps(t *testing.T) {
	root, dir := newRoot(t)
	name := filepath.Join(dir, "f")
	secret := bytes.Repeat([]byte("hunter2 "), 4096)
	write(t, name, secret, 0o600)
	inode, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer inode.Close()
	var steps []string
	defer fault.Set(func(label string) error {
		step, rest, _ := strings.Cut(label, ":")
		steps = append(steps, strings.TrimPrefix(step, "shred."))
		if want := filepath.Base(dir) + "/f"; rest != want {
			t.Errorf("label names %q, want %q", rest, want)
		}
		now, err := io.ReadAll(io.NewSectionReader(inode, 0, 1<<20))
		if err != nil {
			t.Error(err)
		}
		var ok bool
		switch step {
		case "shred.overwrite":
			ok = bytes.Equal(now, secret)
		case "shred.sync", "shred.truncate":
			ok = len(now) == len(secret) && !bytes.Contains(now, []byte("hunter2"))
		case "shred.unlink":
			ok = len(now) == 0
		}
		if _, err := os.Lstat(name); err != nil || !ok {
			t.Errorf("at %s: %d bytes (%.20q), name %v", step, len(now), now, err)
		}
		return nil
	})()
	if err := File(root, "f"); err != nil {
		t.Fatal(err)
	}
	if want := []string{"overwrite", "sync", "truncate", "unlink"}; !slices.Equal(steps, want) {
		t.Errorf("steps %q, want %q", steps, want)
	}
}

// TestFullDiskFreesTheFile: on a file system that copies on write, overwriting
// may need the very space that only removing gives back.
func TestFullDiskFreesTheFile(t *testing.T) {
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		root, dir := newRoot(t)
		write(t, filepath.Join(dir, "t/f"), []byte("secret"), 0o600)
		restore := fault.Set(func(label string) error {
			if strings.HasPrefix(label, "shred.overwrite:") {
				return full
			}
			return nil
		})
		err := Tree(root, "t")
		restore()
		if !errors.Is(err, full) {
			t.Errorf("got %v, want %v", err, full)
		}
		missing(t, filepath.Join(dir, "t/f"))
		if err := Tree(root, "t"); err != nil {
			t.Error(err)
		}
		missing(t, filepath.Join(dir, "t"))
	}
}
