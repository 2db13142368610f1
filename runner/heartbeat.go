package runner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// heartbeat shows the database that a task is being worked on, for as long as
// it runs.
type heartbeat struct {
	*background.Worker
	send   func(context.Context) error
	lease  time.Duration // age of a heartbeat after which another agent may take the task over
	fenced chan struct{} // closed when the claim turns out to be lost

	mu        sync.Mutex
	confirmed time.Time // when the database last said that the claim is ours
}

// startHeartbeat starts the heartbeat of a task. The caller stops it.
func (r *Runner) startHeartbeat(m *staging.Manifest) *heartbeat {
	h := &heartbeat{
		send: func(ctx context.Context) error {
			if m.Offline {
				return nil // no row, so nobody to compete with
			}
			err := r.db.Heartbeat(ctx, m.TaskID, m.Token)
			if err == nil {
				r.Metrics.Heartbeat()
			}
			return err
		},
		lease:  r.Lease,
		fenced: make(chan struct{}),
	}
	h.Worker = background.Every(context.Background(), r.Heartbeat, func(ctx context.Context) bool {
		r.alive(r.Heartbeat)
		if h.isFenced() {
			return true // the deployment that is killed now takes its time, too
		}
		// A database that is away is no reason to stop what has begun: half of
		// it is worse than all of it.
		try, cancel := context.WithTimeout(ctx, max(r.Heartbeat, 5*time.Second))
		defer cancel()
		err := h.confirm(try)
		if err != nil && !errors.Is(err, taskdb.ErrFenced) && ctx.Err() == nil {
			r.Log.Warn("heartbeat failed; the deployment goes on", "task", m.TaskID, "error", err)
		}
		return true
	})
	return h
}

// confirm sends one heartbeat now.
func (h *heartbeat) confirm(ctx context.Context) error {
	asked := time.Now() // the lease runs from some time after this
	err := h.send(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.confirmed = asked
	case errors.Is(err, taskdb.ErrFenced) && !h.isFenced():
		close(h.fenced)
	}
	return err
}

// isFenced reports whether the claim turned out to be lost.
func (h *heartbeat) isFenced() bool {
	select {
	case <-h.fenced:
		return true
	default:
		return false
	}
}

// verifyTimeout is how long the database may take to confirm a claim once more
// before something is changed.
const verifyTimeout = 10 * time.Second

// verifyClaim says why nothing may be changed under this claim, "" when it holds.
// A database that does not answer is no reason while the lease runs: then nobody
// else can have taken the task over.
func (h *heartbeat) verifyClaim(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	err := h.confirm(ctx)
	if err == nil {
		return ""
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if silent := time.Since(h.confirmed); silent > safeLease(h.lease) {
		return fmt.Sprintf("the claim could not be confirmed for %s, so another agent may have taken the task over: %v",
			silent.Round(time.Second), err)
	}
	return ""
}

// safeLease returns how long after it was confirmed a claim is certainly ours:
// the lease, less what it takes to stop.
func safeLease(lease time.Duration) time.Duration { return lease - min(15*time.Second, lease/10) }

// leaseRemaining returns how long the claim is certainly ours.
func (h *heartbeat) leaseRemaining() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return safeLease(h.lease) - time.Since(h.confirmed)
}

// keepUnrecorded sends the heartbeats of tasks that have ended and whose outcomes the
// database refuses: else another agent would take them over.
func (r *Runner) keepUnrecorded(ctx context.Context) bool {
	tasks, _ := r.dir.List(staging.Running)
	for _, t := range tasks {
		m, err := t.Manifest()
		if err != nil || m.Offline || t.Refusal() == nil {
			continue
		}
		try, cancel := context.WithTimeout(ctx, finalTimeout)
		_ = r.db.Heartbeat(try, m.TaskID, m.Token) // what is wrong, the next try to record it says
		cancel()
	}
	return true
}
