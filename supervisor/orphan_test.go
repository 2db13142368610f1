package supervisor

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// supervisorProcess starts a supervisor that can be killed: the program with
// the given stop limit and components, see superviseAlone.
func supervisorProcess(t *testing.T, program string, args ...string) (*exec.Cmd, *output) {
	t.Helper()
	cmd := exec.Command(program, append([]string{"supervisor"}, args...)...)
	out, err := startProcess(t, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// startProcess starts cmd, which is killed when the test ends.
func startProcess(t *testing.T, cmd *exec.Cmd) (*output, error) {
	t.Helper()
	out := newOutput()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	w.Close()
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(out, r) })
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		reading.Wait()
		r.Close()
	})
	return out, nil
}

// The supervisor is killed as the kernel kills when memory runs out. All that
// it started go, each in its own way: one stops when asked, one finishes its
// work although nobody reads its log any more, one hangs with a grandchild, and
// one knows of no control pipe, but the kernel tells it.
func TestNoOrphanSurvivesSIGKILL(t *testing.T) {
	note := filepath.Join(t.TempDir(), "note")
	cmd, out := supervisorProcess(t, "/proc/self/exe", "2s", "fetcher:serve:1ms", "runner:careful:"+note, "notifier:stubborn:", "stranger:deaf:")
	var all []pidHandle
	for _, name := range []string{"fetcher", "runner", "notifier", "stranger"} {
		all = append(all, open(t, out.await(t, 1, "component", name, "msg", "serving").pid()))
	}
	all = append(all, open(t, out.await(t, 1, "msg", "holding").pid()))
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		p.awaitEnd(t)
	}
	if b, err := os.ReadFile(note); err != nil || string(b) != "finished" {
		t.Errorf("the runner could not finish its work: note %q, %v", b, err)
	}
}

// The same end, by a panic's or a core-dumping signal's way out.
func TestNoOrphanSurvivesSIGQUIT(t *testing.T) {
	cmd, out := supervisorProcess(t, "/proc/self/exe", "2s", "fetcher:serve:1ms", "runner:serve:1ms")
	var all []pidHandle
	for _, name := range []string{"fetcher", "runner"} {
		all = append(all, open(t, out.await(t, 1, "component", name, "msg", "serving").pid()))
	}
	if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		p.awaitEnd(t)
	}
}

// A package upgrade replaces the program under a running agent: what is
// restarted is of the version that runs.
func TestAnUpgradeInPlaceDoesNotMixVersions(t *testing.T) {
	program := copyOfSelf(t)
	_, out := supervisorProcess(t, program, "2s", "fetcher:serve:1ms")
	pid := out.await(t, 1, "msg", "serving").pid()
	next := filepath.Join(t.TempDir(), "next")
	if err := os.WriteFile(next, []byte("#!/bin/sh\nexit 7\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, program); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	out.await(t, 2, "msg", "serving")
	if n := out.count("exit", "exit status 7"); n != 0 {
		t.Errorf("the new version was started %d times", n)
	}
}

// Stopping politely, from the outside, as a service manager does.
func TestSIGTERMEndsTheWholeTree(t *testing.T) {
	cmd, out := supervisorProcess(t, "/proc/self/exe", "10s", "fetcher:serve:1ms", "runner:serve:1ms", "notifier:serve:1ms")
	var all []pidHandle
	for _, name := range []string{"fetcher", "runner", "notifier"} {
		all = append(all, open(t, out.await(t, 1, "component", name, "msg", "serving").pid()))
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the supervisor ends with %v, want success", err)
	}
	for _, p := range all {
		p.awaitEnd(t)
	}
}

// As process 1 of a container it inherits what its components leave.
func TestProcessOneCollectsStrays(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "supervisor", "2s", "runner:abandon:")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	out, err := startProcess(t, cmd)
	if errors.Is(err, syscall.EPERM) && os.Getenv("CI") == "" {
		t.Skipf("no right to make a process namespace: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	out.await(t, 1, "msg", "stray process collected")
	out.await(t, 2, "component", "runner", "msg", "component died")
	if n := out.count("component", "runner", "msg", "component died", "exit", "exit status 1"); n < 2 {
		t.Errorf("a component's death was taken for a stray's: %v", out.all())
	}
}
