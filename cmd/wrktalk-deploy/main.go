// Command wrktalk-deploy carries out one deployment. The runner of
// wrktalk-agent starts it and speaks to it as package protocol says; it is of
// no use on its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/compose"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/helm"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Exit codes. 0 is a Result that was reported, whatever it says.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

var errInterrupted = errors.New("the deployment was interrupted")

func main() {
	scrub()
	if len(os.Args) == 2 && os.Args[1] == helm.StepArg {
		os.Exit(helm.Step())
	}
	if len(os.Args) > 1 && os.Args[1] == "check" {
		os.Exit(check(os.Args[2:]))
	}
	if len(os.Args) == 2 && os.Args[1] == protocol.CheckReleaseArg {
		os.Exit(checkRelease())
	}
	if len(os.Args) > 1 {
		exit(exitUsage, errors.New("takes no arguments: wrktalk-agent starts it"))
	}
	runner, err := attach()
	if err != nil {
		exit(exitUsage, err)
	}
	job, err := runner.job()
	if err != nil {
		exit(exitUsage, err)
	}
	if err := serve(runner, job); err != nil {
		exit(exitFailed, err)
	}
}

func exit(code int, err error) {
	fmt.Fprintln(os.Stderr, "wrktalk-deploy:", err)
	os.Exit(code)
}

// check is for wrktalk-agent's command of that name: given a working directory, it
// says whether the Docker engine answers, and given a namespace, a kubeconfig and a
// context, whether Kubernetes does. Each line after the first is a warning.
func check(args []string) int {
	var text string
	var warnings []string
	var err error
	switch len(args) {
	case 1:
		text, warnings, err = compose.Check(context.Background(), args[0])
	case 3:
		text, err = helm.Check(context.Background(), &protocol.Helm{Namespace: args[0], Kubeconfig: args[1], Context: args[2]})
	default:
		err = errors.New("check takes a working directory, or a namespace, a kubeconfig and a context")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	for _, line := range append([]string{text}, warnings...) {
		fmt.Println(deploy.OneLine(line))
	}
	return exitDone
}

// scrub removes from the environment what no library may act on: the agent's
// own settings, and those that change what Compose, Helm and libpq do. The
// runner gives none of them; this holds when somebody else starts us.
func scrub() {
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		for _, prefix := range []string{"WRKTALK_", "COMPOSE_", "HELM_", "PG"} {
			if strings.HasPrefix(name, prefix) {
				_ = os.Unsetenv(name) // fails for malformed names only
			}
		}
	}
}

// serve runs the job and reports its Result. A panic is printed, and reported
// as nothing: the runner then knows that we died.
func serve(runner *runner, job protocol.Job) (err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "%s\n%s", new(mask.Masker).String(fmt.Sprint("panic: ", p)), debug.Stack())
			err = errors.New("stopped by the panic above")
		}
	}()

	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		cancel(errInterrupted)
		<-signals
		os.Exit(exitFailed)
	}()
	go runner.watch()

	report := deploy.NewReport(os.Stdout, runner.emit)
	return runner.report(deploy.Run(ctx, job, report, runner.requestApproval, choose(job)))
}

// backends are what a job can be set for.
var backends = []struct {
	wanted func(protocol.Job) bool
	open   deploy.Factory
}{
	{func(job protocol.Job) bool { return job.Compose != nil }, compose.New},
	{func(job protocol.Job) bool { return job.Helm != nil }, helm.New},
}

// choose returns the backend that the job is set for.
func choose(job protocol.Job) deploy.Factory {
	var found []deploy.Factory
	for _, b := range backends {
		if b.wanted(job) {
			found = append(found, b.open)
		}
	}
	switch len(found) {
	case 0:
		return refuse("the job names neither a Helm release nor a Compose project")
	case 1:
		return found[0]
	default:
		return refuse("the job names a Helm release and a Compose project: one process deploys one of them")
	}
}

// refuse is the backend of a job that cannot be carried out.
func refuse(why string) deploy.Factory {
	return func(*protocol.Job, *deploy.Report) (deploy.Backend, error) { return nil, errors.New(why) }
}

// maxJob bounds the job and each reply, in bytes.
const maxJob = 1 << 20

// runner is the process at the other end.
type runner struct {
	in       *json.Decoder
	limit    *io.LimitedReader
	messages *os.File
	replies  chan protocol.Approval
}

// attach opens both ends of the conversation.
func attach() (*runner, error) {
	messages := os.NewFile(protocol.MessageFD, "messages")
	// Not only whether it is open: without one from outside, Go's own poller has
	// that number.
	info, err := messages.Stat()
	if err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return nil, fmt.Errorf("file descriptor %d is not a pipe: wrktalk-agent starts this program", protocol.MessageFD)
	}
	// A credential helper that inherited it would keep the runner waiting.
	syscall.CloseOnExec(protocol.MessageFD)
	limit := &io.LimitedReader{R: os.Stdin, N: maxJob}
	return &runner{in: json.NewDecoder(limit), limit: limit, messages: messages, replies: make(chan protocol.Approval, 1)}, nil
}

// job reads the job.
func (r *runner) job() (protocol.Job, error) {
	var job protocol.Job
	if err := r.in.Decode(&job); err != nil {
		if r.limit.N <= 0 {
			return job, fmt.Errorf("read the job: it is larger than %d bytes", maxJob)
		}
		return job, fmt.Errorf("read the job: %w", err)
	}
	if job.Schema != protocol.Schema {
		return job, fmt.Errorf("read the job: its schema is %d, this program knows %d: wrktalk-agent and wrktalk-deploy are of different versions", job.Schema, protocol.Schema)
	}
	return job, nil
}

// watch passes replies on until standard input ends: then the runner is gone,
// and with it everybody who could be told. The next runner recovers.
func (r *runner) watch() {
	for {
		r.limit.N = maxJob
		var reply protocol.Approval
		if err := r.in.Decode(&reply); err != nil {
			os.Exit(exitFailed)
		}
		select {
		case r.replies <- reply:
		default: // nobody asked; the end of the input must still be seen
		}
	}
}

// requestApproval asks the runner whether what serves may be changed.
func (r *runner) requestApproval(ctx context.Context) error {
	if err := r.send(protocol.Message{ApprovalRequest: true}); err != nil {
		return fmt.Errorf("ask the runner for approval: %w", err)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case reply := <-r.replies:
		if !reply.Approved && reply.Reason == "" {
			return errors.New("the runner did not approve the change")
		}
		if !reply.Approved {
			return errors.New(reply.Reason)
		}
		return nil
	}
}

// emit sends an event. The timeline is worth no deployment: a message that
// cannot be sent means that the runner is gone, which watch sees.
func (r *runner) emit(e task.Event) { _ = r.send(protocol.Message{Event: &e}) }

func (r *runner) report(res protocol.Result) error {
	if err := r.send(protocol.Message{Result: &res}); err != nil {
		return fmt.Errorf("report the result: %w", err)
	}
	return nil
}

func (r *runner) send(m protocol.Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = r.messages.Write(append(line, '\n'))
	return err
}
