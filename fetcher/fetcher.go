// Package fetcher makes a claimed row a ready directory: it claims due tasks,
// streams their release out of the database, verifies and extracts it in one
// pass, and publishes the directory to the runner. What cannot be staged is
// published all the same, as a refusal: the runner alone ends tasks.
//
// fetcher.go decides when to claim, stage.go turns one claim into a directory,
// unpack/ holds the extraction that refuses what could hurt.
package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/fetcher/unpack"
	"github.com/wrktalk/wrktalk-agent/internal/meter"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// Options are the fetcher's settings, all of them plain values.
type Options struct {
	Target    taskdb.Target
	Lease     time.Duration // age of a heartbeat after which a task is taken over
	Poll      time.Duration // between two looks at the database without a hint
	Heartbeat time.Duration // between two signs of life while staging
	Owner     string        // names this agent to operators
	Limits    unpack.Limits
	// MaxOverdue is how late a task may be claimed before it is refused; 0 is any
	// time.
	MaxOverdue time.Duration
	// MaxAttempts is how often staging may begin, each time ended by a crash,
	// before the task is refused; 0 is any number.
	MaxAttempts int
	// Kept reports whether the payload of a release is still at hand where it is
	// deployed to; nil means that it is never needed.
	Kept func(version, sha256 string) bool
	// Timeline copies what happens to the database; it may be nil.
	Timeline *taskdb.Timeline
	Meter    meter.Meter // nil measures nothing
	Log      *slog.Logger
}

// Fetcher claims and stages one task at a time.
type Fetcher struct {
	Options
	db    *taskdb.DB
	dir   *staging.Dir
	ready func(reason string) // set by Run

	listenAgain time.Duration   // after the agent's own schema was not there
	condemned   map[string]bool // drafts that could not be discarded, by name
}

// New returns a fetcher over an open database and a staging directory that was
// opened as its fetcher. Both stay the caller's.
func New(db *taskdb.DB, dir *staging.Dir, o Options) *Fetcher {
	return &Fetcher{Options: o, db: db, dir: dir, listenAgain: time.Minute, condemned: map[string]bool{}}
}

// Run claims and stages tasks until ctx is done; a task being staged then is
// finished within grace, or left for the next start to take up. Ready is called
// with "" once the database has answered, and with the reason when tasks can be
// neither claimed nor staged. It returns an error only if the staging directory
// cannot be used.
func (f *Fetcher) Run(ctx context.Context, grace time.Duration, ready func(reason string)) error {
	f.ready = ready
	watcher := f.dir.Watch(f.Poll, staging.Ready, staging.Running)
	defer watcher.Stop()
	hints, stopListening := f.listen()
	defer stopListening()

	work, release := graceful(ctx, grace)
	defer release()
	if err := f.sweep(ctx, work); err != nil {
		return err
	}
	var failures int
	for ctx.Err() == nil {
		wait, err := f.round(ctx, work)
		switch {
		case err == nil:
			if failures > 0 {
				f.Log.Info("the database answers again")
			}
			failures = 0
			ready("")
		case ctx.Err() != nil:
			return nil
		default:
			if failures++; failures == 1 {
				f.Log.Error("no task can be claimed", "error", err)
			}
			ready(err.Error())
			wait = f.backoff(failures)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-watcher.Hints():
		case <-hints:
		}
		timer.Stop()
	}
	return nil
}

// longestBackoff bounds the wait after a failure; polling may be far slower
// where the database announces tasks.
const longestBackoff = 30 * time.Second

// backoff returns how long to wait after the given number of failures in a row:
// doubling from half a second, with jitter so that the agents of a restarted
// database do not all come back at once.
func (f *Fetcher) backoff(failures int) time.Duration {
	wait := min(f.Poll, longestBackoff, 500*time.Millisecond<<min(failures-1, 16))
	return wait/2 + rand.N(wait/2+1)
}

// graceful returns a context that ends grace after ctx does.
func graceful(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(grace, cancel)
		context.AfterFunc(work, func() { timer.Stop() })
	})
	return work, func() { stop(); cancel() }
}

// listen passes on the database's notifications of new tasks. They are hints:
// without them, tasks are found by polling.
func (f *Fetcher) listen() (<-chan struct{}, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	hints := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Whoever migrates the database later need not restart the agent.
		for told := false; ; {
			err := f.db.Listen(ctx, func() {
				told = false
				select {
				case hints <- struct{}{}:
				default:
				}
			})
			if err == nil || ctx.Err() != nil {
				return
			}
			if !told {
				f.Log.Info("new tasks are found by polling", "reason", err, "every", f.Poll)
				told = true
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(f.listenAgain):
			}
		}
	}()
	return hints, func() { cancel(); <-done }
}

// sweep settles what lies in tmp and nobody works on: the drafts of a
// predecessor that was killed, those that could not be discarded, and what an
// operator's command was killed over. It is called between two tasks, when this
// fetcher has no draft in work. It returns an error only if nothing can be looked
// at.
func (f *Fetcher) sweep(ctx, work context.Context) error {
	drafts, err := f.dir.Drafts()
	if drafts == nil {
		return err
	}
	if err != nil {
		f.Log.Warn("a draft cannot be looked at", "error", err)
	}
	for _, d := range drafts {
		if ctx.Err() != nil { // the next start has another look
			_ = d.Close()
			continue
		}
		if err := f.settle(ctx, work, d); err != nil {
			f.Log.Warn("a draft cannot be put away; trying again later", "task", d.Task().Name, "error", err)
		}
	}
	return nil
}

// settle stages a draft anew whose claim holds, publishes one that needs no
// claim, and shreds any other one.
func (f *Fetcher) settle(ctx, work context.Context, d *staging.Draft) error {
	if f.condemned[d.Task().Name] {
		return f.discard(d)
	}
	m, err := d.Claim()
	var disk syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f.discard(d)
	case errors.As(err, &disk): // that may pass
		return errors.Join(err, d.Close())
	case err != nil:
		f.Log.Warn("discarding a draft that cannot be read", "task", d.Task().Name, "error", err)
		return f.discard(d)
	case m.Offline: // complete: its operator was cut off before the last step
		_, err := d.Publish(*m)
		if err != nil {
			err = errors.Join(err, d.Close())
		}
		return err
	}
	_, err = f.takeUp(ctx, work, d, m)
	return err
}

// discard shreds a draft. One that could not be shredded may have lost what it
// is known by; sweep tries again.
func (f *Fetcher) discard(d *staging.Draft) error {
	err := d.Discard()
	if err != nil {
		f.condemned[d.Task().Name] = true
	} else {
		delete(f.condemned, d.Task().Name)
	}
	return err
}

// takeUp stages a draft whose claim may or may not have been committed, if the
// database says that it holds, and shreds it otherwise. When ctx ends before the
// database has answered, the draft is left for the next start.
func (f *Fetcher) takeUp(ctx, work context.Context, d *staging.Draft, m *staging.Manifest) (held bool, err error) {
	err = f.confirm(ctx, m)
	switch {
	case err == nil:
		m.Starts++
		if err := d.SetClaim(*m); err != nil {
			f.Log.Warn("this start of staging is not counted", "task", d.Task().Name, "error", err)
		}
		f.Log.Info("staging anew what was claimed before", "task", d.Task().Name, "start", m.Starts)
		d.Task().Mirror(f.Timeline.For(m.TaskID, m.Token))
		f.stage(work, d, *m)
		return true, nil
	case errors.Is(err, taskdb.ErrFenced):
		f.Log.Info("discarding a draft whose claim does not hold", "task", d.Task().Name)
		return false, f.discard(d)
	default:
		return false, d.Close() // ctx has ended
	}
}

// confirm asks the database whether a claim still holds until it gets an answer
// or ctx ends.
func (f *Fetcher) confirm(ctx context.Context, m *staging.Manifest) error {
	for n := 1; ; n++ {
		err := f.db.Heartbeat(ctx, m.TaskID, m.Token)
		if err == nil || errors.Is(err, taskdb.ErrFenced) || ctx.Err() != nil {
			return err
		}
		f.Log.Warn("a claim cannot be confirmed; trying again", "error", err)
		f.ready(err.Error())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(f.backoff(n)):
		}
	}
}

// round claims and stages what is due, and returns how long there is nothing to
// do. While a task of this agent is in flight nothing is claimed, whatever the
// database says about its lease: only this host knows that it is alive.
func (f *Fetcher) round(ctx, work context.Context) (time.Duration, error) {
	for {
		busy, err := f.busy()
		if err != nil {
			return 0, err
		}
		var d *staging.Draft
		var m staging.Manifest
		claim, err := f.db.Claim(ctx, f.Target, taskdb.ClaimOptions{
			Lease: f.Lease, Owner: f.Owner, Claim: !busy,
			Record: func(t taskdb.Task) error {
				if d != nil { // the transaction was begun again
					if err := f.discard(d); err != nil {
						return err
					}
				}
				m = manifestOf(t)
				d, err = f.dir.Create(staging.Name(m.ClaimedAt, m.Kind, t.Version, m.TaskID))
				if err != nil {
					return err
				}
				delete(f.condemned, d.Task().Name) // one of that name was removed by hand
				return d.SetClaim(m)
			},
		})
		if err != nil {
			if d == nil {
				return 0, err
			}
			// The commit's reply may be what was lost.
			m.Starts = 0 // nothing was staged yet
			held, upErr := f.takeUp(ctx, work, d, &m)
			if held && ctx.Err() == nil {
				continue
			}
			return 0, errors.Join(err, upErr)
		}
		f.Meter.Polled()
		if !claim.Contended {
			f.Meter.Queue(claim.Due, claim.Scheduled)
		}
		if claim.Task == nil {
			return f.wait(claim), f.sweep(ctx, work)
		}
		d.Task().Mirror(f.Timeline.For(m.TaskID, m.Token))
		f.Meter.Heartbeat() // a claim is the first one
		f.event(d, task.PhaseClaimed, claimText(claim.Task))
		f.stage(work, d, m)
		if ctx.Err() != nil {
			return 0, nil
		}
	}
}

// wait returns how long to wait after a claim that took nothing.
func (f *Fetcher) wait(c *taskdb.Claim) time.Duration {
	wait := f.Poll
	if c.NextDue > 0 {
		wait = min(wait, c.NextDue)
	}
	if c.Busy != nil {
		wait = min(wait, c.LeaseLeft+100*time.Millisecond)
	}
	if c.Contended {
		wait = min(wait, time.Second)
	}
	return wait
}

func manifestOf(t taskdb.Task) staging.Manifest {
	return staging.Manifest{
		TaskID: t.ID, Kind: t.Kind, Token: t.Token, TakenOver: t.TakenOver,
		Release: staging.Release{ArtifactID: t.ArtifactID},
		Starts:  1,
		DueAt:   t.ExecuteAfter, ClaimedAt: time.Now().UTC(), Late: t.Late,
	}
}

func claimText(t *taskdb.Task) string {
	if t.TakenOver {
		return fmt.Sprintf("took over %s task %s, whose lease had run out", t.Kind, t.ID)
	}
	return fmt.Sprintf("claimed %s task %s", t.Kind, t.ID)
}

// busy reports whether a task of this agent is ready or running.
func (f *Fetcher) busy() (bool, error) {
	for _, s := range []staging.State{staging.Ready, staging.Running} {
		tasks, err := f.dir.List(s)
		if err != nil || len(tasks) > 0 {
			return true, err
		}
	}
	return false, nil
}

func (f *Fetcher) event(d *staging.Draft, phase task.Phase, text string) {
	f.Log.Info(text, "task", d.Task().Name, "state", string(phase))
	err := d.Task().Append(task.Event{Time: time.Now().UTC(), Component: "fetcher", Phase: phase, Text: text})
	if err != nil {
		f.Log.Warn("the timeline misses an event", "task", d.Task().Name, "error", err)
	}
}
