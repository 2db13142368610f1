package maintenance

import (
	"context"
	"fmt"
	"time"
)

// How long a switch waits before it tries again to end a page: from the one,
// doubling, to the other. A page must not outlive a crash by a minute.
const (
	retryFirst = time.Second
	retryMost  = 20 * time.Second
)

// Recover ends a page that a crash, or a failed Leave, left on: when the record
// tells of an owner other than activeOwner ("" is nobody), it switches the page
// off. For activeOwner itself it sees to it that the page is on and held. Call
// it at start. After an error that leaves the page on, the switch goes on trying
// by itself until Enter or Close; State tells when it is off.
func (s *Switch) Recover(ctx context.Context, activeOwner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.record.load()
	if err != nil {
		return fmt.Errorf("recover maintenance: %w", err)
	}
	switch {
	case r == nil:
		return nil
	case activeOwner == "" || r.Owner != activeOwner:
		s.letGo()
		if err := s.leaveSoon(ctx, r); err != nil {
			return err
		}
		s.log.Warn("ended the maintenance of a run that is over", "task", r.Owner)
		return nil
	case s.hold != nil && s.hold.owner == activeOwner:
		return nil
	default:
		return s.enter(ctx, activeOwner)
	}
}

// leaveElsewhere undoes a record that speaks of another web server, or of
// another file, than the configuration does now.
func (s *Switch) leaveElsewhere(ctx context.Context) error {
	r, err := s.record.load()
	if err != nil {
		return fmt.Errorf("enter maintenance: %w", err)
	}
	if r == nil || r.Target == s.opts.target() {
		return nil
	}
	return s.leave(ctx, r)
}

// leaveSoon is leave, and goes on trying in the background when it fails.
func (s *Switch) leaveSoon(ctx context.Context, r *record) error {
	err := s.leave(ctx, r)
	if err == nil {
		return nil
	}
	if r, lerr := s.record.load(); lerr != nil || r == nil {
		return err // the page is off, only not as expected
	}
	s.letGo()
	ctx, cancel := context.WithCancel(context.Background())
	h := &hold{cancel: cancel, done: make(chan struct{})}
	s.hold = h
	go func() {
		defer close(h.done)
		s.keepLeaving(ctx, err)
	}()
	return err
}

// keepLeaving tries to end the page until it succeeds or ctx ends. What it said
// last, the caller has returned.
func (s *Switch) keepLeaving(ctx context.Context, last error) {
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		r, err := s.record.load()
		if err == nil && r == nil {
			return
		}
		if err == nil {
			err = s.leave(ctx, r)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			s.log.Warn("ended a maintenance that could not be ended before", "task", r.Owner)
			return
		case err.Error() != last.Error():
			last = err
			s.log.Error("maintenance cannot be ended: clients do not reach the application", "error", err)
		}
	}
}
