//go:build faultinject

package durable

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// TestEveryStepMayFail fails each step of each operation in turn. Whatever the
// step, the error must come back, and a reader must find either the state
// before or the state after, and nothing beside it.
func TestEveryStepMayFail(t *testing.T) {
	for _, tt := range []struct {
		operation     string
		run           func(*fixture) error
		before, after string
		steps         []string
	}{
		{
			"writefile", func(f *fixture) error { return WriteFile(f.a, "f", []byte("new"), 0o600) },
			"a a/f=old b", "a a/f=new b",
			[]string{"create", "write", "sync", "rename", "syncdir"},
		},
		{
			"rename", func(f *fixture) error { return Rename(f.a, "f", f.b, "g") },
			"a a/f=old b", "a b b/g=old",
			[]string{"rename", "synctarget", "syncsource"},
		},
		{
			"mkdir", func(f *fixture) error { return Mkdir(f.b, "d", 0o700) },
			"a a/f=old b", "a a/f=old b b/d",
			[]string{"mkdir", "syncdir"},
		},
		{
			"remove", func(f *fixture) error { return Remove(f.a, "f") },
			"a a/f=old b", "a b",
			[]string{"remove", "syncdir"},
		},
	} {
		t.Run(tt.operation, func(t *testing.T) {
			var passed []string
			for i := 0; ; i++ {
				f := newFixture(t)
				n := 0
				var failed string
				restore := fault.Set(func(label string) error {
					n++
					if n-1 != i {
						return nil
					}
					failed, _, _ = strings.Cut(strings.TrimPrefix(label, "durable."+tt.operation+"."), ":")
					return syscall.EIO
				})
				err := tt.run(f)
				restore()
				if failed == "" {
					if err != nil || f.state(t) != tt.after {
						t.Errorf("without a fault: %v, state %q, want %q", err, f.state(t), tt.after)
					}
					break
				}
				passed = append(passed, failed)
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("%s failed, but the operation said %v", failed, err)
				}
				want := tt.before
				if strings.HasPrefix(failed, "sync") && failed != "sync" {
					want = tt.after // the change was made; that it lasts is not known
				}
				if got := f.state(t); got != want {
					t.Errorf("%s failed: state %q, want %q", failed, got, want)
				}
			}
			if !slices.Equal(passed, tt.steps) {
				t.Errorf("steps %q, want %q", passed, tt.steps)
			}
		})
	}
}

// givenUp makes WriteFile fail in root and returns how many bytes the half
// written file still held when it was gone; at labels that begin with open it is
// looked for, and fail decides.
func givenUp(t *testing.T, root *os.Root, dir, label string, fail error, data []byte) int64 {
	t.Helper()
	var temp *os.File
	restore := fault.Set(func(l string) error {
		if temp != nil || !strings.HasPrefix(l, label) {
			return nil
		}
		found, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("found %v, %v", found, err)
		}
		if temp, err = os.Open(found[0]); err != nil {
			t.Fatal(err)
		}
		return fail
	})
	defer restore()
	if err := WriteFile(root, ".env", data, 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("WriteFile returns %v", err)
	}
	if temp == nil {
		t.Fatalf("no step is called %s: the test shows nothing", label)
	}
	defer temp.Close()
	if left := names(t, dir); left != "" {
		t.Errorf("the directory holds %s", left)
	}
	info, err := temp.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// What was written of a secret before the disk was full is overwritten and
// truncated, not just without a name.
func TestWriteFileShredsWhatItGivesUp(t *testing.T) {
	root, dir := newRoot(t)
	if left := givenUp(t, root, dir, "durable.writefile.sync:", syscall.ENOSPC, []byte("API_TOKEN=secret")); left != 0 {
		t.Errorf("%d bytes were only unlinked", left)
	}
}

// The same on a disk that is really full.
func TestWriteFileShredsOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	root := openRoot(t, dir)
	if left := givenUp(t, root, dir, "durable.writefile.write:", nil, bytes.Repeat([]byte("secret "), 32<<10)); left != 0 {
		t.Errorf("%d bytes were only unlinked", left)
	}
}
