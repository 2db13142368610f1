package maintenance

import (
	"context"
	"fmt"
)

// Recover ends a page that a crash, or a failed Leave, left on: when the record
// tells of an owner other than activeOwner ("" is nobody), it switches the page
// off. For activeOwner itself it sees to it that the page is on and held. Call
// it at start and then, every few seconds, until it returns nil; it costs the
// reading of one small file when there is nothing to do.
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
		if err := s.leave(ctx, r); err != nil {
			return err
		}
		s.log.Warn("ended the maintenance of a run that is over", "task", r.Owner)
		return nil
	case s.hold != nil:
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
