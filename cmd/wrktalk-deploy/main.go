// Command wrktalk-deploy carries out one deployment. The runner of
// wrktalk-agent starts it and speaks to it as package deployment says; it is of
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
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
	"github.com/wrktalk/wrktalk-agent/runner/helm"
)

// Exit codes. 0 is a Result that was reported, whatever it says.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

var errInterrupted = errors.New("the deployment was interrupted")

// deployer is one way to deploy.
type deployer interface {
	Run(ctx context.Context, job deployment.Job) deployment.Result
}

func main() {
	scrub()
	if len(os.Args) == 2 && os.Args[1] == helm.StepArg {
		os.Exit(helm.Step())
	}
	if len(os.Args) > 1 && os.Args[1] == "check" {
		os.Exit(check(os.Args[2:]))
	}
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "wrktalk-deploy: takes no arguments: wrktalk-agent starts it")
		os.Exit(exitUsage)
	}
	runner, err := attach()
	if err != nil {
		fmt.Fprintln(os.Stderr, "wrktalk-deploy:", err)
		os.Exit(exitUsage)
	}
	job, err := runner.job()
	if err != nil {
		fmt.Fprintln(os.Stderr, "wrktalk-deploy:", err)
		os.Exit(exitUsage)
	}
	if err := serve(runner, job); err != nil {
		fmt.Fprintln(os.Stderr, "wrktalk-deploy:", err)
		os.Exit(exitFailed)
	}
}

// check is for wrktalk-agent's command of that name: it says whether the Docker
// engine answers or, given a namespace, a kubeconfig and a context, Kubernetes.
func check(args []string) int {
	var text string
	var err error
	switch len(args) {
	case 0:
		text, err = compose.Check(context.Background())
	case 3:
		text, err = helm.Check(context.Background(), &deployment.Helm{Namespace: args[0], Kubeconfig: args[1], Context: args[2]})
	default:
		err = errors.New("check takes no arguments, or a namespace, a kubeconfig and a context")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	fmt.Println(text)
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
func serve(runner *runner, job deployment.Job) (err error) {
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

	return runner.report(choose(runner, job).Run(ctx, job))
}

// choose returns the deployer for what the job is set for.
func choose(runner *runner, job deployment.Job) deployer {
	switch {
	case job.Helm != nil && job.Compose != nil:
		return refusal("the job names a Helm release and a Compose project: one process deploys one of them")
	case job.Compose != nil:
		return &compose.Deployer{Out: os.Stdout, Emit: runner.emit, Gate: runner.gate}
	case job.Helm != nil:
		return &helm.Deployer{Out: os.Stdout, Emit: runner.emit, Gate: runner.gate}
	default:
		return refusal("the job names neither a Helm release nor a Compose project")
	}
}

// refusal is the deployer of jobs that cannot be carried out.
type refusal string

func (r refusal) Run(_ context.Context, job deployment.Job) deployment.Result {
	res := deployment.Result{
		Message: fmt.Sprintf("release %s was not deployed, and nothing was changed", job.Release.Version),
		Error:   string(r),
	}
	if job.Previous != nil && job.Action == deployment.ActionDeploy {
		res.Serving = job.Previous.Version
	}
	return res
}

// maxJob bounds the job and each reply, in bytes.
const maxJob = 1 << 20

// runner is the process at the other end.
type runner struct {
	in       *json.Decoder
	limit    *io.LimitedReader
	messages *os.File
	replies  chan deployment.Reply
}

// attach opens both ends of the conversation.
func attach() (*runner, error) {
	messages := os.NewFile(deployment.MessageFD, "messages")
	// Not only whether it is open: without one from outside, Go's own poller has
	// that number.
	info, err := messages.Stat()
	if err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return nil, fmt.Errorf("file descriptor %d is not a pipe: wrktalk-agent starts this program", deployment.MessageFD)
	}
	// A credential helper that inherited it would keep the runner waiting.
	syscall.CloseOnExec(deployment.MessageFD)
	limit := &io.LimitedReader{R: os.Stdin, N: maxJob}
	return &runner{in: json.NewDecoder(limit), limit: limit, messages: messages, replies: make(chan deployment.Reply, 1)}, nil
}

// job reads the job.
func (r *runner) job() (deployment.Job, error) {
	var job deployment.Job
	if err := r.in.Decode(&job); err != nil {
		if r.limit.N <= 0 {
			return job, fmt.Errorf("read the job: it is larger than %d bytes", maxJob)
		}
		return job, fmt.Errorf("read the job: %w", err)
	}
	if job.Schema != deployment.Schema {
		return job, fmt.Errorf("read the job: its schema is %d, this program knows %d: wrktalk-agent and wrktalk-deploy are of different versions", job.Schema, deployment.Schema)
	}
	return job, nil
}

// watch passes replies on until standard input ends: then the runner is gone,
// and with it everybody who could be told. The next runner recovers.
func (r *runner) watch() {
	for {
		r.limit.N = maxJob
		var reply deployment.Reply
		if err := r.in.Decode(&reply); err != nil {
			os.Exit(exitFailed)
		}
		select {
		case r.replies <- reply:
		default: // nobody asked; the end of the input must still be seen
		}
	}
}

// gate asks for leave to change what serves.
func (r *runner) gate(ctx context.Context) error {
	if err := r.send(deployment.Message{Gate: true}); err != nil {
		return fmt.Errorf("ask the runner for leave: %w", err)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case reply := <-r.replies:
		if !reply.Proceed && reply.Reason == "" {
			return errors.New("the runner gave no leave")
		}
		if !reply.Proceed {
			return errors.New(reply.Reason)
		}
		return nil
	}
}

// emit sends an event. The timeline is worth no deployment: a message that
// cannot be sent means that the runner is gone, which watch sees.
func (r *runner) emit(e task.Event) { _ = r.send(deployment.Message{Event: &e}) }

func (r *runner) report(res deployment.Result) error {
	if err := r.send(deployment.Message{Result: &res}); err != nil {
		return fmt.Errorf("report the result: %w", err)
	}
	return nil
}

func (r *runner) send(m deployment.Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = r.messages.Write(append(line, '\n'))
	return err
}
