package maintenance

import (
	"context"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
)

// enforceInterval is how often a page that is to be on is looked at. HAProxy
// forgets it with each reload (TestHAProxyReloadForgetsAndThePageComesBack), and
// an operator may end theirs in the middle of a deployment that it covered
// (TestNginxTakesOverFromAnOperator).
const enforceInterval = 2 * time.Second

// leaveRetry is how long to wait between two tries to end a page, which must not
// outlive a crash by a minute.
var leaveRetry = retry.Policy{First: time.Second, Max: 20 * time.Second}

// startEnforcing keeps the page on for owner.
func (s *Switch) startEnforcing(h handler, owner string) {
	s.owner = owner
	if s.opts.Handler == HandlerCommand {
		return // what a command did cannot be looked at, and repeating it might do harm
	}
	var last string // the error that was logged, "" for none
	s.worker = background.Every(context.Background(), enforceInterval, func(ctx context.Context) bool {
		restored, err := s.enforce(ctx, h, owner)
		switch {
		case ctx.Err() != nil:
		case err != nil && err.Error() != last:
			last = err.Error()
			s.log.Error("maintenance cannot be held: clients may reach the application", "task", owner, "error", err)
		case err == nil && (restored || last != ""):
			last = ""
			s.log.Warn("maintenance had been switched off by someone else, and is on again", "task", owner)
		}
		return true
	})
}

// enforce switches the page on again if it is off.
func (s *Switch) enforce(ctx context.Context, h handler, owner string) (restored bool, err error) {
	r, err := s.record.load()
	if err != nil {
		return false, err
	}
	on := false
	if err := s.bounded(ctx, func(ctx context.Context) (err error) {
		on, _, err = h.state(ctx, r)
		return err
	}); err != nil || on {
		return false, err
	}
	if _, err = s.enable(ctx, h, owner); err != nil {
		return false, err
	}
	return true, s.confirm(owner)
}

// stopWorker waits until nothing is under way.
func (s *Switch) stopWorker() {
	s.worker.Stop()
	s.worker, s.owner = nil, ""
}

// leaveWithRetry is leave. When that fails and leaves the page on, it is retried
// in the background.
func (s *Switch) leaveWithRetry(ctx context.Context, r *record) error {
	s.stopWorker()
	err := s.leave(ctx, r)
	if err == nil {
		return nil
	}
	if r, lerr := s.record.load(); lerr != nil || r == nil {
		return err // the page is off, only not as expected
	}
	last := err.Error() // the caller says it
	s.worker = background.Start(context.Background(), func(ctx context.Context) {
		if !retry.Sleep(ctx, leaveRetry.First) {
			return
		}
		_ = leaveRetry.Do(ctx, func() error {
			r, err := s.record.load()
			if err != nil || r == nil {
				return err
			}
			if err := s.leave(ctx, r); err != nil {
				return err
			}
			s.log.Warn("ended a maintenance that could not be ended before", "task", r.Owner)
			return nil
		}, func(err error, _ time.Duration) {
			if err.Error() != last && ctx.Err() == nil {
				last = err.Error()
				s.log.Error("maintenance cannot be ended: clients do not reach the application", "error", err)
			}
		})
	})
	return err
}
