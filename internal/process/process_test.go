package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shell starts a script that is killed with this process.
func shell(t *testing.T, script string, c Command) *Process {
	t.Helper()
	c.Path, c.Args, c.DeathSignal = "/bin/sh", []string{"-c", script}, syscall.SIGKILL
	c.Env = append(c.Env, "PATH="+os.Getenv("PATH"))
	p, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); <-p.Done() })
	return p
}

func TestDescriptorsAreConnected(t *testing.T) {
	var out, both bytes.Buffer
	var messages []struct{ N int }
	p := shell(t, `cat; echo err >&2; echo out; echo '{"N":1}' >&3; echo 'no JSON' >&3; echo '{"N":2}' >&3
		echo '{"N":3,"Text":"longer than the limit"}' >&3; printf '{"N":4' >&3; echo four >&4; pwd; env`, Command{
		Dir: "/proc", Env: []string{"ONLY=this"},
		Feed: func(in *os.File) { io.WriteString(in, "fed\n"); in.Close() },
		Outputs: []Output{
			Copy(&both, 1, 2),
			JSON(20, func(m struct{ N int }) { messages = append(messages, m) }, 3),
			Copy(&out, 4),
		},
	})
	<-p.Done()
	if !p.State().Success() {
		t.Errorf("ended with %s", p.State())
	}
	for _, line := range []string{"fed\nerr\nout\n/proc\n", "ONLY=this\n"} {
		if !strings.Contains(both.String(), line) {
			t.Errorf("printed %q, which lacks %q", both.String(), line)
		}
	}
	if strings.Contains(both.String(), "HOME=") {
		t.Errorf("sees our environment: %s", both.String())
	}
	if out.String() != "four\n" {
		t.Errorf("descriptor 4 has %q", out.String())
	}
	if fmt.Sprint(messages) != "[{1} {2}]" {
		t.Errorf("messages are %v", messages)
	}
}

func TestInputMayBeAnotherDescriptor(t *testing.T) {
	var out bytes.Buffer
	p := shell(t, `read x <&3; echo "$x"; read y || echo "standard input is empty"`, Command{Input: 3, Outputs: []Output{Copy(&out, 1)}})
	if err := p.Send(map[string]int{"a": 1}); err != nil {
		t.Error(err)
	}
	<-p.Done()
	if want := "{\"a\":1}\nstandard input is empty\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
	if err := p.Send("late"); err == nil {
		t.Error("what is sent to a process that has ended is no error")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("full") }

// A child whose output cannot be written anywhere does not wait for that for ever.
func TestAWriterThatFailsBreaksThePipe(t *testing.T) {
	p := shell(t, `exec head -c 1000000 /dev/zero`, Command{Outputs: []Output{Copy(brokenWriter{}, 1)}})
	<-p.Done()
	if ws := p.State().Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGPIPE {
		t.Errorf("ended with %s", p.State())
	}
}

func TestLinesAreBounded(t *testing.T) {
	var got []string
	p := shell(t, `echo short; head -c 100000 /dev/zero | tr '\0' x; echo; echo; printf unfinished`, Command{
		Outputs: []Output{Lines(10, func(line []byte, cut int) { got = append(got, fmt.Sprintf("%s/%d", line, cut)) }, 1)},
	})
	<-p.Done()
	if want := "short/0 xxxxxxxxxx/99990 /0 unfinished/0"; strings.Join(got, " ") != want {
		t.Errorf("lines are %q, want %q", got, want)
	}
}

// The group is dead by the time that Done is closed, also where its members
// would have lived on.
func TestTheGroupEndsWithItsProcess(t *testing.T) {
	var out bytes.Buffer
	p := shell(t, `sleep 1000 & echo $!`, Command{OwnGroup: true, Outputs: []Output{Copy(&out, 1)}})
	<-p.Done()
	awaitDeath(t, out.String())
}

func TestKillReachesTheGroup(t *testing.T) {
	pids := make(chan string, 1)
	p := shell(t, `sleep 1000 & echo $!; wait`, Command{OwnGroup: true, Outputs: []Output{
		Lines(100, func(line []byte, _ int) { pids <- string(line) }, 1),
	}})
	child := <-pids
	p.Kill()
	<-p.Done()
	awaitDeath(t, child)
	if ws := p.State().Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("ended with %s", p.State())
	}
	p.Kill() // reaches nobody
}

// awaitDeath returns once a killed process is gone, or a zombie.
func awaitDeath(t *testing.T, pid string) {
	t.Helper()
	if _, err := strconv.Atoi(strings.TrimSpace(pid)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s lives: %s", pid, stat)
		}
	}
}

// Without a group of its own a child stays in ours, and whoever kills that
// reaches both.
func TestAChildStaysInOurGroup(t *testing.T) {
	p := shell(t, `read x`, Command{})
	if group, err := unix.Getpgid(p.PID); err != nil || group != unix.Getpgrp() {
		t.Errorf("group is %d, %v", group, err)
	}
	p.Signal(syscall.SIGTERM)
	<-p.Done()
	if ws := p.State().Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGTERM {
		t.Errorf("ended with %s", p.State())
	}
}

// What a grandchild outside the group keeps open holds nobody up, and all that
// was written before is there.
func TestAnEscapedGrandchildHoldsNobodyUp(t *testing.T) {
	var out bytes.Buffer
	p := shell(t, `head -c 60000 /dev/zero >&3; echo $(setsid sh -c 'sleep 1000 >/dev/null & echo $!')`, Command{OwnGroup: true, Outputs: []Output{
		Copy(&out, 1), Lines(1<<20, func(line []byte, _ int) {
			if len(line) != 60000 {
				t.Errorf("%d bytes arrived", len(line))
			}
		}, 3),
	}})
	<-p.Done()
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Errorf("the grandchild is gone already: the test shows nothing: %v", err)
	}
}

// The thread that starts a child may be any: it has to live as long as the
// child. Threads end when a locked goroutine does.
func TestAChildOutlivesTheGoroutineThatStartedIt(t *testing.T) {
	started := make(chan *Process)
	go func() { started <- shell(t, `read x`, Command{}) }()
	p := <-started
	for range 100 { // whatever thread it was, it is used for something else
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Send("go on"); err != nil {
		t.Error(err)
	}
	<-p.Done()
	if !p.State().Success() {
		t.Errorf("ended with %s", p.State())
	}
}

func TestAProgramThatIsNotThere(t *testing.T) {
	before := descriptors(t)
	if _, err := Start(Command{Path: "/nowhere/program", Outputs: []Output{Copy(io.Discard, 1)}}); !os.IsNotExist(err) {
		t.Errorf("error is %v", err)
	}
	awaitDescriptors(t, before)
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func awaitDescriptors(t *testing.T, most int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); descriptors(t) > most; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, were %d", descriptors(t), most)
		}
	}
}

func TestTheTailOfStandardError(t *testing.T) {
	var tail Tail
	p := shell(t, `for i in $(seq 20); do echo line $i; done >&2; echo "panic: at the disco" >&2; echo "fatal error: later" >&2; echo >&2`, Command{
		Outputs: []Output{Lines(1000, func(line []byte, _ int) { tail.Add(line) }, 2)},
	})
	<-p.Done()
	if tail.Crash != "panic: at the disco" || len(tail.Lines) != tailLines || tail.Lines[0] != "line 13" || tail.Lines[9] != "fatal error: later" {
		t.Errorf("tail is %+v", tail)
	}
}

// Children of ours that we wait for are no orphans, also as zombies.
func TestOrphansAreReaped(t *testing.T) {
	orphan := exec.Command("/bin/true")
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	awaitDeath(t, strconv.Itoa(orphan.Process.Pid))
	known := exec.Command("/bin/true")
	if err := children.start(known); err != nil {
		t.Fatal(err)
	}
	awaitDeath(t, strconv.Itoa(known.Process.Pid))
	if got := ReapOrphans(); fmt.Sprint(got) != fmt.Sprintf("[%d]", orphan.Process.Pid) {
		t.Errorf("reaped %v, want %d", got, orphan.Process.Pid)
	}
	children.reap(known)
	if known.ProcessState == nil || !known.ProcessState.Success() {
		t.Errorf("the child ended with %v", known.ProcessState)
	}
}
