// Package fetcher makes a claimed row a ready directory: it claims due tasks,
// streams their release out of the database, verifies and extracts it in one
// pass, and publishes the directory to the runner. What cannot be staged is
// published all the same, as a rejection: the runner alone ends tasks.
//
// fetcher.go runs the loop, claim.go claims, stage.go makes a claim a ready
// directory with the files that files.go writes, recover.go deals with drafts
// that were left behind, and unpack/ extracts artifacts that are not trusted.
package fetcher

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/wrktalk/wrktalk-agent/fetcher/unpack"
	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
)

// Options are the fetcher's settings, all of them plain values.
type Options struct {
	Target    taskdb.Target
	Lease     time.Duration // age of a heartbeat after which a task is taken over
	Poll      time.Duration // between two looks at the database without a hint
	Heartbeat time.Duration // between two signs of life while staging
	Owner     string        // names this agent to operators
	Limits    unpack.Limits
	// MaxOverdue is how late a task may be claimed before it is rejected; 0 is any
	// time.
	MaxOverdue time.Duration
	// MaxAttempts is how often staging may begin, each time ended by a crash,
	// before the task is rejected; 0 is any number.
	MaxAttempts int
	// Kept reports whether the deployment target still has the payload of a
	// release; nil means that it is never needed.
	Kept func(version, sha256 string) bool
	// Timeline copies what happens to the database; it may be nil.
	Timeline *taskdb.EventMirror
	// Alive is told, as long as the fetcher gets on, how long it may wait at most until
	// it says so again; it may be nil.
	Alive   func(wait time.Duration)
	Metrics telemetry.Recorder // nil records nothing
	Log     *slog.Logger
}

// Fetcher claims and stages one task at a time.
type Fetcher struct {
	Options
	db    *taskdb.DB
	dir   *staging.Dir
	ready func(reason string) // set by Run

	polled      chan struct{}   // holds one hint that the database answered a poll
	listenRetry time.Duration   // wait at most while the agent's own schema is not there
	undeletable map[string]bool // drafts that could not be shredded, by name
}

// New returns a fetcher over an open database and a staging directory that was
// opened as its fetcher. Both stay the caller's.
func New(db *taskdb.DB, dir *staging.Dir, o Options) *Fetcher {
	return &Fetcher{Options: o, db: db, dir: dir, polled: make(chan struct{}, 1), listenRetry: time.Minute, undeletable: map[string]bool{}}
}

// Run claims and stages tasks until ctx is done; a task being staged then is
// finished within grace, or left for the next start to resume. Ready is called
// with "" once the database has answered, and with the reason when tasks can be
// neither claimed nor staged. It returns an error only if the staging directory
// cannot be used.
func (f *Fetcher) Run(ctx context.Context, grace time.Duration, ready func(reason string)) error {
	f.ready = ready
	watcher := f.dir.Watch(f.Poll, staging.Ready, staging.Running)
	defer watcher.Stop()
	hints, listener := f.listen()
	defer listener.Stop()

	work, release := background.Grace(ctx, grace)
	defer release()
	if err := f.recoverDrafts(ctx, work); err != nil {
		return err
	}
	var failures int
	for ctx.Err() == nil {
		wait, err := f.claimDue(ctx, work)
		switch {
		case err == nil:
			if failures > 0 {
				f.Log.Info("tasks can be claimed again")
			}
			failures = 0
			ready("")
			select {
			case f.polled <- struct{}{}:
			default:
			}
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, staging.ErrUnusable):
			return err
		default:
			if failures++; failures == 1 {
				f.Log.Error("no task can be claimed", "error", err)
			}
			ready(err.Error())
			wait = f.retryPolicy().Delay(failures)
		}
		f.alive(wait)
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

func (f *Fetcher) alive(wait time.Duration) {
	if f.Alive != nil {
		f.Alive(wait)
	}
}

// retryPolicy is how long to wait after failures in a row: doubling from half a
// second, with jitter so that the agents of a restarted database do not all come
// back at once, and never longer than between two polls. Polling may be far slower
// where the database announces tasks.
func (f *Fetcher) retryPolicy() retry.Policy {
	longest := min(f.Poll, 30*time.Second)
	return retry.Policy{First: min(longest, 500*time.Millisecond), Max: longest, Jitter: 0.5}
}

// unheardRetry is how many times longer than for the agent's own schema it takes
// until announcements that do not get through are tried again: that needs another
// way to the database.
const unheardRetry = 10

// listen passes on the database's notifications of new tasks. They are hints:
// without them, tasks are found by polling. The caller stops the worker.
func (f *Fetcher) listen() (<-chan struct{}, *background.Worker) {
	hints := make(chan struct{}, 1)
	return hints, background.Start(context.Background(), func(ctx context.Context) {
		// An agent whose database is migrated later need not be restarted.
		for logged := ""; ; {
			err := f.db.Listen(ctx, func() {
				logged = ""
				select {
				case hints <- struct{}{}:
				default:
				}
			})
			if err == nil {
				return
			}
			if logged != err.Error() {
				f.Log.Info("new tasks are found by polling", "reason", err, "every", f.Poll)
				logged = err.Error()
			}
			if !f.awaitListening(ctx, err) {
				return
			}
		}
	})
}

// awaitListening waits until listening is worth another try, and returns false when
// ctx ends. The agent's own schema may be there at the next poll.
func (f *Fetcher) awaitListening(ctx context.Context, err error) bool {
	if errors.Is(err, taskdb.ErrUnheard) {
		return retry.Sleep(ctx, unheardRetry*f.listenRetry)
	}
	select { // of the polls until now
	case <-f.polled:
	default:
	}
	timer := time.NewTimer(f.listenRetry)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-f.polled:
	}
	return true
}
