//go:build faultinject

package durable

import (
	"errors"
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
