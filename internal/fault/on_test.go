//go:build faultinject

package fault

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMain passes five steps instead of running tests when a test below has
// re-executed this binary.
func TestMain(m *testing.M) {
	if os.Getenv("FAULT_TEST_CHILD") == "" {
		os.Exit(m.Run())
	}
	for i := range 5 {
		label := fmt.Sprintf("demo.step:dir/file%d", i+1)
		if err := Point(label); err != nil {
			fmt.Printf("%v\n", err)
			if errors.Is(err, syscall.ENOSPC) {
				os.Exit(28)
			}
			os.Exit(5)
		}
		fmt.Println(label)
	}
	os.Exit(0)
}

// child runs the five steps under spec.
func child(t *testing.T, spec string) (lines int, state *os.ProcessState, all string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{"FAULT_TEST_CHILD=1", EnvVar + "=" + spec}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return strings.Count(string(out), "\n"), cmd.ProcessState, string(out)
}

func TestEnvironment(t *testing.T) {
	for _, tt := range []struct {
		spec  string
		lines int
		code  int // -1 is killed
	}{
		{"", 5, 0},
		{"kill:demo.step*:3", 2, -1},
		{"kill:*:1", 0, -1},
		{"kill:*file4:1", 3, -1},
		{"kill:*file4:2", 5, 0},
		{"kill:other*:1", 5, 0},
		{"fail:demo.step:dir/file?:2", 2, 5},
		{"full:*:1", 1, 28},
		{"fail:*file2:1;kill:*file5:1", 2, 5},
		{"fail:*file5:0", 5, 5},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			lines, state, out := child(t, tt.spec)
			if lines != tt.lines || state.ExitCode() != tt.code {
				t.Errorf("got %d lines and exit code %d, want %d and %d:\n%s", lines, state.ExitCode(), tt.lines, tt.code, out)
			}
			if tt.code == -1 && state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Errorf("child ended by %v, want SIGKILL", state)
			}
		})
	}
}

func TestMalformedSpecPanics(t *testing.T) {
	for _, spec := range []string{"kill", "kill:x", "kill::1", "kill:x:-1", "kill:x:y", "stop:x:1", "kill:x:1;"} {
		if _, state, out := child(t, spec); state.ExitCode() != 2 || !strings.Contains(out, "read "+EnvVar) {
			t.Errorf("%q: exit code %d, want a panic:\n%s", spec, state.ExitCode(), out)
		}
	}
}

func TestOnceActsInOneProcessOnly(t *testing.T) {
	spec := "kill:*:2;once=" + filepath.Join(t.TempDir(), "once")
	for i, want := range []int{1, 5, 5} {
		if lines, _, out := child(t, spec); lines != want {
			t.Errorf("run %d: %d lines, want %d:\n%s", i, lines, want, out)
		}
	}
}

func TestTraceCollectsLabels(t *testing.T) {
	name := filepath.Join(t.TempDir(), "trace")
	child(t, "kill:*:3;trace="+name)
	child(t, "trace:"+name)
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(got))
	if len(lines) != 3+5 || lines[2] != "demo.step:dir/file3" {
		t.Errorf("traced %q", lines)
	}
}

func TestSetReplacesAndRestores(t *testing.T) {
	want := errors.New("chosen")
	restore := Set(func(label string) error {
		if label == "b" {
			return want
		}
		return nil
	})
	if err := Point("a"); err != nil {
		t.Error(err)
	}
	if err := Point("b"); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	restore()
	if err := Point("b"); err != nil {
		t.Errorf("after restore: %v", err)
	}
}
