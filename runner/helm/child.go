package helm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

const (
	// recordTime is what a child's own deadline comes earlier than ours, at most:
	// it should record by itself that it failed. Then it is killed.
	recordTime = 5 * time.Second
	// pipeDelay is how long a child's pipes may stay open after its end.
	pipeDelay = 5 * time.Second
)

// until returns when a child that runs under ctx, which has a deadline, is to
// give up.
func until(ctx context.Context) time.Time {
	end, _ := ctx.Deadline()
	return end.Add(-min(recordTime, time.Until(end)/10))
}

// ending is how a child's work ended.
type ending struct {
	err     error  // nil: done
	late    bool   // err is that the time was up
	killed  bool   // by us, or by itself: it did not come to an end
	touched bool   // the cluster may have been changed
	created int    // the revision it recorded, 0 for none
	cause   *cause // why a hook failed
}

// child runs o in a process of its own until that ends, or ctx does, which kills
// it. When o asks for leave, allow is called and its answer passed on; an error
// of it becomes the ending's.
func (r *run) child(ctx context.Context, o order, allow func(context.Context) (leave, error)) ending {
	o.Job, o.Until = r.job, until(ctx)
	if err := context.Cause(ctx); err != nil {
		return ending{err: err, late: isLate(err)}
	}
	p, err := startChild(o, r.out)
	if err != nil {
		return ending{err: err}
	}
	var end ending
	var done *word
	stop := ctx.Done()
	for open := true; open; {
		select {
		case <-stop:
			stop = nil
			end.err, end.killed = context.Cause(ctx), true
			p.kill()
		case w, ok := <-p.words:
			open = ok
			switch {
			case !ok:
			case w.Done:
				done = &w
			case end.killed && !w.Touched && w.Created == 0:
			case w.Ready:
				given, err := allow(ctx)
				if err != nil {
					end.err, end.killed = err, true
					p.kill()
					continue
				}
				p.allow(given)
			case w.Secrets != nil:
				r.learn(w.Secrets...)
				p.allow(leave{})
			default:
				r.hear(w, &end)
			}
		}
	}
	exit := <-p.exit
	switch {
	case done != nil && done.Error == "": // perhaps in the very moment of the kill
		end.err, end.killed = nil, false
	case end.killed:
	case done != nil:
		end.err, end.late = errors.New(done.Error), done.Late
	default:
		end.killed, end.err = true, fmt.Errorf("the helm process died: %s", p.lastWords.reason(exit))
	}
	end.late = end.late || isLate(end.err)
	return end
}

func isLate(err error) bool {
	return errors.Is(err, errTimeout) || errors.Is(err, errRestoreTimeout)
}

// hear takes in a word that needs no answer.
func (r *run) hear(w word, end *ending) {
	switch {
	case w.Phase != "":
		r.emit(w.Phase, w.Text)
	case w.Touched:
		end.touched = true
	case w.Created != 0:
		end.touched, end.created = true, w.Created
	case w.Cause != nil && end.cause == nil: // what follows a failure is not its cause
		end.cause = w.Cause
	}
}

// process is a running child.
type process struct {
	cmd       *exec.Cmd
	in        *os.File
	words     chan word // closed when it has ended
	exit      chan error
	lastWords *lastWords
}

// startChild starts this program again. It stays in our process group, so that
// whoever kills that reaches both, and it dies with us.
func startChild(o order, out io.Writer) (*process, error) {
	doc, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode the order: %w", err)
	}
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the helm process: %w", err)
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the helm process: %w", err), inRead.Close(), inWrite.Close())
	}
	p := &process{in: inWrite, words: make(chan word), exit: make(chan error, 1), lastWords: &lastWords{out: out}}
	// By /proc, since an upgrade of the package may have replaced the file.
	p.cmd = exec.Command("/proc/self/exe", StepArg)
	p.cmd.Args[0] = os.Args[0]
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = inRead, out, p.lastWords
	p.cmd.ExtraFiles = []*os.File{outWrite} // becomes stepFD
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = pipeDelay

	started := make(chan error)
	go func() {
		// The parent-death signal is bound to this thread (golang/go#27505).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		closeAll(inRead, outWrite)
		started <- err
		if err != nil {
			return
		}
		read := make(chan struct{})
		go func() {
			defer close(read)
			p.read(outRead)
		}()
		err = p.cmd.Wait()
		_ = outRead.SetReadDeadline(time.Now().Add(pipeDelay)) // a grandchild may hold it open
		<-read
		closeAll(inWrite, outRead)
		p.exit <- err
		close(p.words)
	}()
	if err := <-started; err != nil {
		closeAll(inWrite, outRead)
		return nil, fmt.Errorf("start the helm process: %w", err)
	}
	if _, err := inWrite.Write(append(doc, '\n')); err != nil {
		p.kill() // it ended at once; its exit says how
	}
	return p, nil
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		_ = f.Close() // pipes: nothing is lost
	}
}

func (p *process) read(from *os.File) {
	lines := bufio.NewReader(from)
	for {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			return // a last line without its end was cut by a kill
		}
		var w word
		if json.Unmarshal(text, &w) == nil {
			p.words <- w
		}
	}
}

// allow answers the child. One that does not listen has ended; its exit says why.
func (p *process) allow(l leave) { _ = json.NewEncoder(p.in).Encode(l) }

// kill ends the child. The API may still finish the request it was in; what
// follows observes first, and applies over it.
func (p *process) kill() { _ = p.cmd.Process.Kill() } // fails when it has ended

// lastWords passes on what the child prints to standard error, and keeps what
// tells why it died. The runtime prints that in pieces.
type lastWords struct {
	out io.Writer

	mu    sync.Mutex
	line  []byte // the beginning of the current one
	fatal string
}

func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	for text := range bytes.Lines(p) {
		l.line = append(l.line, text[:min(len(text), maxQuote)]...)
		if bytes.HasSuffix(text, []byte{'\n'}) {
			l.judge()
		}
	}
	l.mu.Unlock()
	return l.out.Write(p)
}

// judge looks at a complete line.
func (l *lastWords) judge() {
	s := strings.TrimSpace(string(l.line))
	if l.fatal == "" && (strings.HasPrefix(s, "fatal error: ") || strings.HasPrefix(s, "panic: ") || strings.HasPrefix(s, "runtime: out of memory")) {
		l.fatal = s
	}
	l.line = l.line[:0]
}

// reason says in words why the child ended.
func (l *lastWords) reason(exit error) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case strings.Contains(l.fatal, "out of memory"):
		return fmt.Sprintf("the chart took more than %d MiB of memory", maxMemory>>20)
	case strings.Contains(l.fatal, "stack overflow"):
		return "the chart recursed too deeply"
	case l.fatal != "":
		return task.SafeText(oneLine(l.fatal), maxQuote)
	}
	var status *exec.ExitError
	if errors.As(exit, &status) {
		if ws, ok := status.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return fmt.Sprintf("signal %d (%s)", ws.Signal(), ws.Signal())
		}
	}
	if exit == nil {
		return "it ended without a word"
	}
	return exit.Error()
}
