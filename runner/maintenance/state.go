package maintenance

import (
	"context"
	"fmt"
)

// State reports whether clients get the page, and whether it is the agent's. It
// asks the probe URL where there is one. Without one, a flag file counts only if
// its nginx could be reloaded, or if it is an operator's.
func (s *Switch) State(ctx context.Context) (on, byUs bool, err error) {
	m := s.method(s.opts.target())
	if m == nil {
		return false, false, nil
	}
	r, err := s.record.load()
	if err != nil {
		return false, false, err
	}
	ours := false
	if err := s.bounded(ctx, func(ctx context.Context) (err error) {
		on, ours, err = m.look(ctx, r)
		return err
	}); err != nil {
		return false, false, fmt.Errorf("look at maintenance: %w", err)
	}
	if s.probe == nil {
		if ours && !r.Confirmed {
			on = false
		}
		return on, on && ours, nil
	}
	err = s.bounded(ctx, func(ctx context.Context) (err error) {
		a, err := s.probe.ask(ctx)
		on = a.page()
		return err
	})
	if err != nil {
		return false, false, fmt.Errorf("look at maintenance: %w", err)
	}
	return on, on && ours, nil
}
