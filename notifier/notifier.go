// Package notifier turns an outcome into mail, one per active administrator,
// and then leaves nothing: when every recipient is settled, the task's
// directory is shredded.
//
// notifier.go is the loop, job.go what it does for one task, ledger.go the
// record that survives a crash, render.go the words, transport.go and send.go
// the conversation with the mail server, explain.go what its errors mean.
package notifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/meter"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Book is where settings and recipients are looked up, each time anew.
type Book interface {
	// MailSettings returns the settings of deployment_config; the zero value
	// when it has none.
	MailSettings(ctx context.Context) (Settings, error)
	// ActiveAdmins returns the administrators that are active now.
	ActiveAdmins(ctx context.Context) ([]Recipient, error)
}

// Recipient is an administrator as table admin has it.
type Recipient struct {
	Name    string // may be empty
	Address string // may be anything
}

// Options are the notifier's settings.
type Options struct {
	Transport Transport
	Origin    Origin
	MaxAge    time.Duration // how long a mail is tried; 0 is 72 hours
	Rescan    time.Duration // between looks without a hint; 0 is 30 seconds
	Keep      int           // how many settled tasks stay for debugging; 0 is none
	Meter     meter.Meter   // nil measures nothing
	Log       *slog.Logger  // nil is slog.Default; it carries the component key
	// Ready is told why mail cannot be prepared, after the second failure in a
	// row, and "" once it can; it may be nil.
	Ready func(reason string)
	// Outbox is given each delivery of a task as it is planned, and whenever its
	// state changes; Settled is called when a task's last mail is settled, or it has none. Neither
	// may block; both may be nil.
	Outbox  func(task.ID, Delivery)
	Settled func()
	// Timeline returns what is also given the events of a claim; nil is nothing.
	Timeline func(task.ID, task.Token) func(task.Event)
}

const (
	concurrency  = 4 // mails under way at a time
	backoffFirst = 5 * time.Second
	backoffMax   = 15 * time.Minute
	// The database may come back any time, and asking it is cheap.
	bookBackoffMax = time.Minute
	bookTimeout    = 30 * time.Second
)

// Notifier is the component. Run serves; everything else belongs to Run's
// goroutine, except what start lends to others.
type Notifier struct {
	dir  *staging.Dir
	book Book
	opts Options
	log  *slog.Logger

	jobs    map[string]*job // by the name of the task's directory
	started int             // pieces of work under way
	ended   chan func()     // what remains to be done about each, by the loop

	saidUnconfigured, saidNobody bool

	now     func() time.Time
	backoff func(attempt int, limit time.Duration) time.Duration
}

// New returns a notifier of the tasks in dir, which must have been opened with
// the role Notifier and stays the caller's.
func New(dir *staging.Dir, book Book, opts Options) *Notifier {
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
		dir: dir, book: book, opts: opts, log: log,
		jobs: map[string]*job{}, ended: make(chan func(), concurrency),
		now: time.Now, backoff: backoff,
	}
}

// backoff returns how long to wait after the n-th failure in a row: doubling,
// limited, and a fifth more or less so that recipients do not march in step.
func backoff(n int, limit time.Duration) time.Duration {
	d := limit
	if n < 20 {
		d = min(limit, backoffFirst<<max(0, n-1))
	}
	return d*4/5 + rand.N(d*2/5)
}

// Run serves until ctx ends, then cuts what is under way, except a mail that
// the server is just taking, and returns nil. It returns an error only when
// the staging directory cannot be listed any more.
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
			if err := n.look(); err != nil {
				return err
			}
		case settle := <-n.ended:
			n.started--
			settle()
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return nil
		}
		n.dispatch(ctx)
		n.sweep()
		if err := n.dir.Sweep(); err != nil {
			n.log.Warn("something in the trash could not be shredded; trying again", "error", err)
		}
		timer.Reset(n.untilDue())
	}
}

// drain waits for what is under way and records it.
func (n *Notifier) drain() {
	for ; n.started > 0; n.started-- {
		(<-n.ended)()
	}
}

// look makes jobs of the tasks that are done, and forgets those that went.
func (n *Notifier) look() error {
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
		if !there[name] && j.task.State == staging.Done && j.under == 0 {
			n.forget(j)
		}
	}
	return nil
}

// dispatch begins what is due, the longest waiting first.
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
// a mail to send; nil when there is none that is not under way.
func (n *Notifier) next() (first *job, mail *Delivery) {
	var due time.Time
	for _, j := range n.jobs {
		switch {
		case j.settled:
		case j.ledger == nil:
			if j.under == 0 && (first == nil || j.due.Before(due)) {
				first, mail, due = j, nil, j.due
			}
		default:
			for i := range j.ledger.Deliveries {
				d := &j.ledger.Deliveries[i]
				if d.State == StatePending && !j.sending[d.Address] && (first == nil || d.NextTry.Before(due)) {
					first, mail, due = j, d, d.NextTry
				}
			}
		}
	}
	return first, mail
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
		if j.settled && j.due.After(n.now()) {
			wait = min(wait, j.due.Sub(n.now()))
		}
	}
	return max(wait, 0)
}

// start runs work beside the loop, which then calls what work returns.
func (n *Notifier) start(work func() (settle func())) {
	n.started++
	go func() { n.ended <- work() }()
}

// sweep shreds the settled tasks beyond those that are kept.
func (n *Notifier) sweep() {
	var settled []*job
	for _, j := range n.jobs {
		if j.settled && j.under == 0 {
			settled = append(settled, j)
		}
	}
	slices.SortFunc(settled, func(a, b *job) int { return strings.Compare(b.task.Name, a.task.Name) }) // newest first
	for i, j := range settled {
		if i < n.opts.Keep || j.due.After(n.now()) {
			continue
		}
		if err := j.task.Discard(); err != nil {
			j.failures++
			j.due = n.now().Add(n.backoff(j.failures, backoffMax))
			j.log.Error("cannot shred a task whose mail is settled", "error", err)
			continue
		}
		n.forget(j)
		j.log.Info("mail is settled, the task's directory is shredded")
	}
}

// settings asks the book, within its time.
func (n *Notifier) settings(ctx context.Context) (Settings, error) {
	ctx, cancel := context.WithTimeout(ctx, bookTimeout)
	defer cancel()
	s, err := n.book.MailSettings(ctx)
	if err != nil {
		return Settings{}, &bookError{fmt.Errorf("read mail settings: %w", err)}
	}
	return s, nil
}

func (n *Notifier) admins(ctx context.Context) ([]Recipient, error) {
	ctx, cancel := context.WithTimeout(ctx, bookTimeout)
	defer cancel()
	r, err := n.book.ActiveAdmins(ctx)
	if err != nil {
		return nil, &bookError{fmt.Errorf("read active administrators: %w", err)}
	}
	return r, nil
}

// bookError is trouble with the database, not with mail.
type bookError struct{ err error }

func (e *bookError) Error() string { return e.err.Error() }
func (e *bookError) Unwrap() error { return e.err }

func isBookError(err error) bool {
	var e *bookError
	return errors.As(err, &e)
}
