package runner

import (
	"context"
	"errors"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// heartbeat shows the database that a task is being worked on, for as long as
// it runs.
type heartbeat struct {
	fenced chan struct{} // closed when the claim turns out to be lost
	wish   *wish         // to have the task cancelled
	cancel context.CancelFunc
	done   chan struct{}
}

// startHeartbeat starts the heartbeat of a task. The caller stops it.
func (r *Runner) startHeartbeat(m *staging.Manifest) *heartbeat {
	ctx, cancel := context.WithCancel(context.Background())
	b := &heartbeat{fenced: make(chan struct{}), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		tick := time.NewTicker(r.Heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// A database that is away is no reason to stop: nobody else can take
			// the task over either as long as it is.
			try, cancel := context.WithTimeout(ctx, max(r.Heartbeat, 5*time.Second))
			err := r.db.Heartbeat(try, m.TaskID, m.Token)
			cancel()
			switch {
			case err == nil:
				r.Meter.Heartbeat()
			case errors.Is(err, taskdb.ErrFenced):
				close(b.fenced)
				return
			case ctx.Err() == nil:
				r.Log.Warn("heartbeat failed; the deployment goes on", "task", m.TaskID, "error", err)
			}
		}
	}()
	return b
}

func (b *heartbeat) stop() {
	b.cancel()
	<-b.done
}
