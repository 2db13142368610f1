package shred

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestMain makes the test binary useful as a program that blocks: it says it
// runs, and ends with its standard input.
func TestMain(m *testing.M) {
	if os.Getenv("SHRED_TEST_BLOCK") == "" {
		os.Exit(m.Run())
	}
	_, _ = os.Stdout.WriteString("running\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// startBlocked runs the copy of this binary at name until the returned writer
// is closed; wait returns when it has ended.
func startBlocked(t *testing.T, name string) (in io.Closer, wait func()) {
	t.Helper()
	cmd := exec.Command(name)
	cmd.Env = []string{"SHRED_TEST_BLOCK=1"}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := false
	wait = func() {
		if !done {
			done = true
			_ = cmd.Wait()
		}
	}
	t.Cleanup(func() { _ = stdin.Close(); wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "running\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	return stdin, wait
}

// asNobody returns false in a process whom file permissions bind. As root it
// runs the calling test in such a process, and returns true.
func asNobody(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "shred-nobody")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	// The binary's own directory is closed to others.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "test")
	if err := os.WriteFile(binary, self, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(binary, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"TMPDIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	return true
}
