package runner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// heartbeat shows the database that a task is being worked on, for as long as
// it runs.
type heartbeat struct {
	send   func(context.Context) error
	fenced chan struct{} // closed when the claim turns out to be lost
	wish   *wish         // an operator's, to have the task cancelled
	blind  bool          // the database is away for good; going on without its word
	cancel context.CancelFunc
	done   chan struct{}

	mu        sync.Mutex
	confirmed time.Time // when the database last said that the claim is ours
}

// startHeartbeat starts the heartbeat of a task. The caller stops it.
func (r *Runner) startHeartbeat(m *staging.Manifest) *heartbeat {
	ctx, cancel := context.WithCancel(context.Background())
	b := &heartbeat{
		send: func(ctx context.Context) error {
			if m.Offline {
				return nil // no row, so nobody to compete with
			}
			err := r.db.Heartbeat(ctx, m.TaskID, m.Token)
			if err == nil {
				r.Meter.Heartbeat()
			}
			return err
		},
		fenced: make(chan struct{}), cancel: cancel, done: make(chan struct{}),
	}
	go func() {
		defer close(b.done)
		tick := time.NewTicker(r.Heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-b.fenced:
				return
			case <-tick.C:
			}
			// A database that is away is no reason to stop what has begun: half of
			// it is worse than all of it.
			try, cancel := context.WithTimeout(ctx, max(r.Heartbeat, 5*time.Second))
			err := b.confirm(try)
			cancel()
			if err != nil && !errors.Is(err, taskdb.ErrFenced) && ctx.Err() == nil {
				r.Log.Warn("heartbeat failed; the deployment goes on", "task", m.TaskID, "error", err)
			}
		}
	}()
	return b
}

// confirm sends one heartbeat now.
func (b *heartbeat) confirm(ctx context.Context) error {
	asked := time.Now() // the lease runs from some time after this
	err := b.send(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
		b.confirmed = asked
	case errors.Is(err, taskdb.ErrFenced) && !b.lost():
		close(b.fenced)
	}
	return err
}

// lost reports whether the claim turned out to be lost.
func (b *heartbeat) lost() bool {
	select {
	case <-b.fenced:
		return true
	default:
		return false
	}
}

// doubtTimeout is how long the database may take to confirm a claim once more
// before something is changed.
const doubtTimeout = 10 * time.Second

// doubt says why nothing may be changed under this claim, "" when it holds. A
// database that does not answer is no reason while the lease runs: then nobody
// else can have taken the task over.
func (b *heartbeat) doubt(ctx context.Context, lease time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, doubtTimeout)
	defer cancel()
	err := b.confirm(ctx)
	if err == nil || b.blind {
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if silent := time.Since(b.confirmed); silent > sure(lease) {
		return fmt.Sprintf("the claim could not be confirmed for %s, so another agent may have taken the task over: %v",
			silent.Round(time.Second), err)
	}
	return ""
}

// sure returns how long after it was confirmed a claim is certainly ours: the
// lease, less what it takes to stop.
func sure(lease time.Duration) time.Duration { return lease - min(15*time.Second, lease/10) }

// left returns how long the claim is certainly ours.
func (b *heartbeat) left(lease time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return sure(lease) - time.Since(b.confirmed)
}

func (b *heartbeat) stop() {
	b.cancel()
	<-b.done
}
