package helm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// StepArg is the only argument of the child process. Whoever links this package
// and uses New must call Step when it is given.
const StepArg = "helm-step"

// Limits of the child. A chart that needs more ends it, not the agent.
const (
	maxMemory = 1 << 30   // bytes of writable memory
	maxStack  = 128 << 20 // bytes of one goroutine's stack
)

// Step is the child's main function; it returns the exit code. Its standard
// input carries a command, descriptor 3 takes its events. Not all that it prints
// is masked: the parent does that.
func Step() int {
	// The parent decides when to stop, and then kills; a service manager that
	// signals the whole group must not cut a request in two.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	syscall.CloseOnExec(eventFD)
	c := newConn()
	var cmd command
	if err := c.in.Decode(&cmd); err != nil {
		fmt.Fprintln(os.Stderr, "wrktalk-deploy: read the command:", err)
		return 2
	}
	if err := setLimits(); err != nil {
		fmt.Fprintln(os.Stderr, "wrktalk-deploy: bound the memory:", err)
		return 2
	}
	go c.listen() // ends with the process
	report := deploy.NewReport(os.Stdout, func(e task.Event) { c.send(event{Phase: e.Phase, Text: e.Text}) })
	done := event{Done: true}
	if err := execute(cmd, c, report); err != nil {
		done.Error, done.Late = task.Shorten(withoutDumps(report.Line(err.Error())), deploy.MaxCause), isTimeout(err, cmd.Until)
	}
	c.send(done)
	return 0
}

// isTimeout reports whether err is that something was not up in time. Not all of
// the errors of client-go's waiting can be told by their type.
func isTimeout(err error, until time.Time) bool {
	if time.Until(until) > 3*time.Second {
		return false // that of one request, or of a webhook
	}
	for _, s := range []string{"timed out waiting", "context deadline exceeded", "would exceed context deadline"} {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return errors.Is(err, context.DeadlineExceeded) || time.Now().After(until)
}

// setLimits bounds what a hostile chart can take from the host. RLIMIT_DATA counts
// writable memory only, unlike RLIMIT_AS, which Go's reservations exceed.
func setLimits() error {
	debug.SetMaxStack(maxStack)
	debug.SetMemoryLimit(maxMemory * 3 / 4)
	// When memory runs out all the same, the kernel should take this process
	// rather than the one that can undo its work. Without /proc it decides itself.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("800"), 0)
	return syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: maxMemory, Max: maxMemory})
}

// execute carries out cmd.
func execute(cmd command, c *conn, report *deploy.Report) (err error) {
	defer func() { // of this goroutine; those of Helm's end the process
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "panic: %v\n%s", p, debug.Stack())
			err = fmt.Errorf("helm panicked: %v", p)
		}
	}()
	if cmd.Job.Helm == nil {
		return errors.New("the command names no Helm release")
	}
	report.Common(cmd.Job.Helm.Release, cmd.Job.Helm.Namespace)
	cluster, err := connect(cmd.Job.Helm, 0, report)
	if err != nil {
		return err
	}
	var once sync.Once
	e := &executor{command: cmd, cluster: cluster, report: report, out: os.Stdout, conn: c}
	e.client = &client{
		Client: cluster.helmClient(), cluster: cluster, report: report, until: cmd.Until,
		owner:       cmd.Job.Helm.Namespace + "/" + cmd.Job.Helm.Release,
		notUndone:   func(err error) { c.send(event{NotUndone: cluster.quote(withoutDumps(err.Error()))}) },
		markChanged: func() { once.Do(func() { c.send(event{Changed: true}) }) },
		hookFailed:  func(d deploy.Diagnosis) { c.send(event{Hook: &d}) },
	}
	ctx, cancel := context.WithDeadline(context.Background(), cmd.Until)
	defer cancel()
	return e.run(ctx)
}
