//go:build faultinject

package compose

import (
	"errors"
	"os"
	"path"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// interrupted has f stop at its step i, and at all that follow, and reports whether
// it came so far.
func interrupted(t *testing.T, i int, f func() error) bool {
	t.Helper()
	n := 0
	restore := fault.Set(func(string) error {
		if n++; n > i {
			return syscall.EIO
		}
		return nil
	})
	err := f()
	restore()
	if n > i && !errors.Is(err, syscall.EIO) {
		t.Errorf("stopped at step %d: %v, want EIO", i, err)
	}
	return n > i
}

// TestLayOutInterruptedAnywhere stops at each step in turn, as a kill would, and goes
// on with the same release or back to the one before. Data stays in any case.
func TestLayOutInterruptedAnywhere(t *testing.T) {
	one := map[string]string{"same": "s", "a": "1", "gone/x": "1", "dir/x": "1", "file": "1", "link": "->a", "kept": "1", "both": "1"}
	two := map[string]string{"same": "s", "a": "2", "dir": "2", "file/x": "2", "link": "->same", "new/y": "2", "kept": "1", "both": "2"}
	written := map[string]string{"data/db": "rows", "gone/own": "o", "kept": "by hand", "both": "by hand"}
	const (
		after  = "a=2 both=2 data/ data/db=rows dir=2 file/ file/x=2 gone/ gone/own=o kept=by hand link->same new/ new/y=2 same=s"
		before = "a=1 both=by hand data/ data/db=rows dir/ dir/x=1 file=1 gone/ gone/own=o gone/x=1 kept=by hand link->a same=s"
	)
	for i := 0; ; i++ {
		next := []string{"2", "1"}[i%2]
		p := newProject(t)
		p.keep("1", one)
		p.keep("2", two)
		p.mustLay("1")
		p.write(written)
		more := interrupted(t, i, func() error { return p.lay("2") })
		// A process that is killed does not clean up.
		lay := p.laying("2")
		for name := range two {
			dir, base, err := lay.parent(path.Join(projectDir, name))
			if err != nil {
				t.Fatal(err)
			}
			if dir != nil && lay.rec.Laying != "" {
				if err := dir.WriteFile(tempName(base), []byte("half"), 0o600); err != nil {
					t.Fatal(err)
				}
				dir.Close()
			}
		}
		lay.close()
		p.mustLay(next)
		p.wants(map[string]string{"1": before, "2": after}[next])
		if t.Failed() {
			t.Fatalf("at step %d, then release %s", i, next)
		}
		if !more {
			if i < 20 {
				t.Errorf("only %d steps", i)
			}
			break
		}
	}
}

// TestAdoptInterruptedAnywhere does the same where the former layout goes over.
func TestAdoptInterruptedAnywhere(t *testing.T) {
	for i := 0; ; i++ {
		p := newFormer(t, "app")
		more := interrupted(t, i, func() error { return p.adopt() })
		if err := p.adopt(); err != nil {
			t.Fatalf("after a stop at step %d: %v", i, err)
		}
		p.mustLay("2")
		p.wantsAdopted()
		if target, err := os.Readlink(p.store.dir + "/releases/1-abababababab/app"); err != nil || !strings.HasSuffix(target, "/projects/p/project") {
			t.Errorf("no link stays: %q, %v", target, err)
		}
		if t.Failed() {
			t.Fatalf("at step %d", i)
		}
		if !more {
			break
		}
	}
}
