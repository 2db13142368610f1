package helm

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
	"sync"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// StepArg is the only argument of the child process. Whoever links this package
// and uses Deployer must call Step when it is given.
const StepArg = "helm-step"

// stepFD is the descriptor on which the child answers.
const stepFD = 3

// Bounds of the child. A chart that needs more ends it, not the agent.
const (
	maxMemory = 1 << 30   // bytes of writable memory
	maxStack  = 128 << 20 // bytes of one goroutine's stack
	maxOrder  = 2 << 20   // bytes
)

// op is what the child is to do.
type op string

const (
	opUpgrade   op = "upgrade"
	opRollback  op = "rollback"
	opUninstall op = "uninstall"
	opWait      op = "wait"
	opCleanse   op = "cleanse"
)

// order is what the parent writes to the child's standard input, once. It holds
// no secrets: values are read from their file.
type order struct {
	Op       op             `json:"op"`
	Job      deployment.Job `json:"job"`
	Action   string         `json:"action"`             // the label of new revisions
	Revision int            `json:"revision,omitempty"` // to roll back to
	Ask      bool           `json:"ask,omitempty"`      // check first, then wait for leave
	Until    time.Time      `json:"until"`
}

// leave answers Ready, and, empty, Secrets.
type leave struct {
	Install bool `json:"install"` // there is no release: install, do not upgrade
}

// word is one line of the child.
type word struct {
	Phase   task.Phase          `json:"phase,omitempty"`
	Text    string              `json:"text,omitempty"`
	Secrets []map[string]string `json:"secrets,omitempty"` // to be masked from here on
	Ready   bool                `json:"ready,omitempty"`   // all checks passed: may it begin?
	Touched bool                `json:"touched,omitempty"` // the cluster is about to be changed
	Created int                 `json:"created,omitempty"` // the revision is recorded
	Cause   *cause              `json:"cause,omitempty"`   // why a hook failed
	Done    bool                `json:"done,omitempty"`    // the last one
	Error   string              `json:"error,omitempty"`   // with Done
	Late    bool                `json:"late,omitempty"`    // with Error: the time was up
}

// Step is the child's main function; it returns the exit code. Its standard
// input carries an order, descriptor 3 takes its words. What it prints is not
// masked: the parent does that.
func Step() int {
	// The parent decides when to stop, and then kills; a service manager that
	// signals the whole group must not cut a request in two.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	syscall.CloseOnExec(stepFD)
	words := os.NewFile(stepFD, "words")
	in := json.NewDecoder(io.LimitReader(os.Stdin, maxOrder))
	var o order
	if err := in.Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, "wrktalk-deploy: read the order:", err)
		return 2
	}
	if err := confine(); err != nil {
		fmt.Fprintln(os.Stderr, "wrktalk-deploy: bound the memory:", err)
		return 2
	}
	l := &line{out: words, leaves: make(chan leave, 1)}
	go l.listen(in)
	done := word{Done: true}
	if err := carryOut(o, l); err != nil {
		done.Error, done.Late = shorten(oneLine(err.Error())), isWait(err, o.Until)
	}
	l.say(done)
	return 0
}

// shorten leaves out the middle of a long text: nested errors of templates say
// where it began and, at the end, what it was.
func shorten(s string) string {
	const head, tail = 300, 1000
	if len(s) <= head+tail {
		return s
	}
	return strings.ToValidUTF8(s[:head]+" … "+s[len(s)-tail:], "")
}

// isWait reports whether err is that something was not up in time. Not all of
// the errors of client-go's waiting can be told by their type.
func isWait(err error, until time.Time) bool {
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

// confine bounds what a hostile chart can take from the host. RLIMIT_DATA counts
// writable memory only, unlike RLIMIT_AS, which Go's reservations exceed.
func confine() error {
	debug.SetMaxStack(maxStack)
	debug.SetMemoryLimit(maxMemory * 3 / 4)
	// When memory runs out all the same, the kernel should take this process
	// rather than the one that can undo its work. Without /proc it decides itself.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("800"), 0)
	return syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: maxMemory, Max: maxMemory})
}

func carryOut(o order, l *line) (err error) {
	defer func() { // of this goroutine; those of Helm's end the process
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "panic: %v\n%s", p, debug.Stack())
			err = fmt.Errorf("helm panicked: %v", p)
		}
	}()
	if o.Job.Helm == nil {
		return errors.New("the order names no Helm release")
	}
	c, err := connect(o.Job.Helm, 0, os.Stdout)
	if err != nil {
		return err
	}
	say := func(p task.Phase, text string) { l.say(word{Phase: p, Text: text}) }
	var once sync.Once
	k := &client{
		Client: c.helmClient(), cluster: c, until: o.Until, say: say,
		touch:  func() { once.Do(func() { l.say(word{Touched: true}) }) },
		failed: func(why *cause) { l.say(word{Cause: why}) },
	}
	ctx, cancel := context.WithDeadline(context.Background(), o.Until)
	defer cancel()
	return (&operation{order: o, cluster: c, client: k, out: os.Stdout, line: l}).run(ctx)
}

// line is the child's end of the conversation.
type line struct {
	mu     sync.Mutex
	out    *os.File
	leaves chan leave
}

func (l *line) say(w word) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A parent that cannot be told is gone; listen ends us then.
	_ = json.NewEncoder(l.out).Encode(w)
}

// listen waits for leave, and for the end of the parent.
func (l *line) listen(in *json.Decoder) {
	for {
		var given leave
		if err := in.Decode(&given); err != nil {
			os.Exit(1)
		}
		l.leaves <- given
	}
}

// ask asks for leave to begin. No leave comes as the end of this process.
func (l *line) ask() leave {
	l.say(word{Ready: true})
	return <-l.leaves
}

// confide tells the parent what to mask, and waits until it does.
func (l *line) confide(secrets []map[string]string) {
	l.say(word{Secrets: secrets})
	<-l.leaves
}
