// Package notifier tells people about outcomes, through each channel that is
// set up, and then leaves nothing: when no message of a task is left to be sent,
// the task's directory is shredded.
//
// notifier.go is the loop, job.go what it does for one task, deliveries.go the
// record that survives a crash, render.go and text.go write the message;
// channel.go is what a channel must be able to do. Each channel is a package of
// its own.
package notifier

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
)

// Options are the notifier's settings.
type Options struct {
	Channels []Registration
	Origin   Origin
	MaxAge   time.Duration      // how long a message is tried; 0 is 72 hours
	Rescan   time.Duration      // between scans of the directory without a hint; 0 is 30 seconds
	Keep     int                // how many finished tasks stay for debugging; 0 is none
	Metrics  telemetry.Recorder // nil records nothing
	Log      *slog.Logger       // nil is slog.Default; it carries the component key
	// Ready is told why messages cannot be prepared, after the second failure in
	// a row, and "" once they can; it may be nil.
	Ready func(reason string)
	// Alive is told, as long as the notifier gets on, how long it may wait at most until
	// it says so again; it may be nil.
	Alive func(wait time.Duration)
	// OnDelivery is given each delivery of a task as it is planned, and whenever
	// its state changes; OnDone is called when a task has no message left to be
	// sent. Neither may block; both may be nil.
	OnDelivery func(task.ID, Delivery)
	OnDone     func()
	// History is given each task that has no message left to be sent, before its
	// directory is shredded, and keeps what people may ask about later. That it fails
	// keeps no directory from being shredded. Nil keeps nothing.
	History func(*staging.Task) error
	// Timeline returns what is also given the events of a claim; nil is nothing.
	Timeline func(task.ID, task.Token) func(task.Event)
}

const (
	concurrency  = 4 // messages in flight at a time
	backoffFirst = 5 * time.Second
	backoffMax   = 15 * time.Minute
	// The database that a channel's settings are read from may come back any
	// time, and asking it is cheap.
	openBackoffMax = time.Minute
	openTimeout    = 30 * time.Second
)

// Notifier is the component. Run serves; everything else belongs to Run's
// goroutine, except what start lends to others.
type Notifier struct {
	dir  *staging.Dir
	opts Options
	log  *slog.Logger

	jobs    map[string]*job // by the name of the task's directory
	started int             // goroutines that were started and not yet heard of
	ended   chan func()     // what remains to be done after each, by the loop

	idleLogged map[string]string // by channel: why nothing is sent, as it was logged last

	now     func() time.Time
	backoff func(attempt int, limit time.Duration) time.Duration
}

// New returns a notifier of the tasks in dir, which must have been opened with
// the role Notifier and stays the caller's.
func New(dir *staging.Dir, opts Options) *Notifier {
	if opts.MaxAge <= 0 {
		opts.MaxAge = 72 * time.Hour
	}
	if opts.Rescan <= 0 {
		opts.Rescan = 30 * time.Second
	}
	log := opts.Log
	if log == nil {
		log = slog.Default()
	}
	return &Notifier{
		dir: dir, opts: opts, log: log,
		jobs: map[string]*job{}, ended: make(chan func(), concurrency), idleLogged: map[string]string{},
		now: time.Now, backoff: backoff,
	}
}

// backoff returns how long to wait after the n-th failure in a row: doubling up to
// limit, and a fifth more or less so that recipients do not march in step.
func backoff(n int, limit time.Duration) time.Duration {
	return retry.Policy{First: backoffFirst * 6 / 5, Max: limit * 6 / 5, Jitter: 1.0 / 3}.Delay(n)
}

// Run serves until ctx ends, then cuts what is in flight, except a message that the
// receiver is just accepting, and returns nil. It returns an error only when the
// staging directory cannot be listed any more.
func (n *Notifier) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer n.drain()
	defer cancel() // before drain, whatever Run ends for
	w := n.dir.Watch(n.opts.Rescan, staging.Done)
	defer w.Stop()
	if err := w.Err(); err != nil {
		n.log.Warn("no file system events, looking on a timer", "error", err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Hints():
			if err := n.scan(); err != nil {
				return err
			}
		case finish := <-n.ended:
			n.started--
			finish()
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return nil
		}
		n.dispatch(ctx)
		n.shred()
		if err := n.dir.Sweep(); err != nil {
			n.log.Warn("something in the trash could not be shredded; trying again", "error", err)
		}
		wait := n.untilDue()
		if n.opts.Alive != nil {
			n.opts.Alive(wait)
		}
		timer.Reset(wait)
	}
}

// drain waits for what is in flight and records it.
func (n *Notifier) drain() {
	for ; n.started > 0; n.started-- {
		(<-n.ended)()
	}
}

// scan makes jobs of the tasks that are done, and removes those of tasks that went.
func (n *Notifier) scan() error {
	tasks, err := n.dir.List(staging.Done)
	if err != nil {
		return fmt.Errorf("look for outcomes: %w", err)
	}
	there := make(map[string]bool, len(tasks))
	for _, t := range tasks {
		there[t.Name] = true
		if n.jobs[t.Name] == nil {
			n.jobs[t.Name] = &job{
				task: t, due: n.now(),
				log: n.log.With("task", t.Name, "state", string(staging.Done)),
			}
		}
	}
	for name, j := range n.jobs {
		if !there[name] && j.task.State == staging.Done && j.inFlight == 0 {
			n.remove(j)
		}
	}
	return nil
}

// dispatch starts what is due, the longest waiting first.
func (n *Notifier) dispatch(ctx context.Context) {
	for n.started < concurrency {
		j, d := n.next()
		if j == nil {
			return
		}
		now := n.now()
		switch {
		case d != nil && d.NextTry.After(now), d == nil && j.due.After(now):
			return
		case d != nil:
			n.attempt(ctx, j, d)
		default:
			n.plan(ctx, j)
		}
	}
}

// next returns the work that is due first: a job to plan or, with a delivery,
// a message to send; nil when there is none that is not in flight already.
func (n *Notifier) next() (first *job, message *Delivery) {
	var due time.Time
	for _, j := range n.jobs {
		switch {
		case j.done:
		case j.deliveries == nil:
			if j.inFlight == 0 && (first == nil || j.due.Before(due)) {
				first, message, due = j, nil, j.due
			}
		default:
			for i := range j.deliveries.List {
				d := &j.deliveries.List[i]
				if d.State == StatePending && !j.sending[d] && (first == nil || d.NextTry.Before(due)) {
					first, message, due = j, d, d.NextTry
				}
			}
		}
	}
	return first, message
}

// untilDue returns how long the loop may sleep.
func (n *Notifier) untilDue() time.Duration {
	wait := n.opts.Rescan
	if n.started < concurrency {
		if j, d := n.next(); d != nil {
			wait = min(wait, d.NextTry.Sub(n.now()))
		} else if j != nil {
			wait = min(wait, j.due.Sub(n.now()))
		}
	}
	for _, j := range n.jobs {
		if j.done && j.due.After(n.now()) {
			wait = min(wait, j.due.Sub(n.now()))
		}
	}
	return max(wait, 0)
}

// start runs work beside the loop, which then calls what work returns.
func (n *Notifier) start(work func() (finish func())) {
	n.started++
	go func() { n.ended <- work() }()
}

// shred shreds the finished tasks beyond those that are kept.
func (n *Notifier) shred() {
	var done []*job
	for _, j := range n.jobs {
		if j.done && j.inFlight == 0 {
			done = append(done, j)
		}
	}
	slices.SortFunc(done, func(a, b *job) int { return strings.Compare(b.task.Name, a.task.Name) }) // newest first
	for i, j := range done {
		if i < n.opts.Keep || j.due.After(n.now()) {
			continue
		}
		if n.opts.History != nil && !j.kept {
			if err := n.opts.History(j.task); err != nil {
				j.log.Warn("the history lacks this task", "error", err)
			}
			j.kept = true
		}
		if err := j.task.Remove(); err != nil {
			j.failures++
			j.due = n.now().Add(n.backoff(j.failures, backoffMax))
			j.log.Error("cannot shred a task whose mail is settled", "error", err)
			continue
		}
		n.remove(j)
		j.log.Info("mail is settled, the task's directory is shredded")
	}
}
