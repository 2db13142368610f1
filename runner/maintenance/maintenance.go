// Package maintenance switches a maintenance page on before a deployment and
// off after it: through nginx, through HAProxy, or through commands.
//
// Whoever finds the page on must be able to tell whose it is. The agent keeps a
// record of what it switched, written before the switch is touched and removed
// after it was put back; a page without such a record is an operator's, and is
// neither taken over nor ended. While a run is on, the page is held: what a
// reload of HAProxy or a careless rm switches off is switched on again.
package maintenance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// method is one way to switch the page. All of it is idempotent.
type method interface {
	// plan looks before anything is touched. It reports whether someone else's
	// maintenance is on, or fills in r what off will need.
	plan(ctx context.Context, r *record) (foreign bool, err error)
	// on switches the page on, or on again; save stores r when it has changed.
	on(ctx context.Context, r *record, save func() error) error
	// off undoes what r tells of. It reports whether the page stays because an
	// operator wants it.
	off(ctx context.Context, r *record) (kept bool, err error)
	// look reports whether the page is on, and whether it is the one r tells of;
	// r may be nil.
	look(ctx context.Context, r *record) (on, ours bool, err error)
	check(ctx context.Context) []Finding
}

// unsure wraps the error of a switch that was made without any certainty that
// it took effect.
type unsure struct{ error }

func (u unsure) Unwrap() error { return u.error }

// Switch is the page of one target. Any goroutine may call its methods; Enter,
// Leave, Recover and Close wait for each other.
type Switch struct {
	opts   Options
	record recordFile
	probe  *probe // nil without a probe URL
	log    *slog.Logger

	mu   sync.Mutex // one of Enter, Leave, Recover and Close at a time
	hold *hold      // what goes on in between; nil for nothing
}

// New checks opts and touches nothing.
func New(opts Options) (*Switch, error) {
	if err := opts.complete(); err != nil {
		return nil, fmt.Errorf("set up maintenance: %w", err)
	}
	s := &Switch{opts: opts, record: recordFile(opts.StateFile), log: opts.Logger}
	if opts.ProbeURL != "" {
		s.probe = newProbe(opts.ProbeURL)
	}
	return s, nil
}

// method returns the way to switch t, nil for none.
func (s *Switch) method(t target) method {
	switch t.Handler {
	case HandlerNginx:
		return &nginx{flagFile: t.FlagFile, reloadCommand: t.ReloadCommand, drain: s.opts.Drain, log: s.log}
	case HandlerHAProxy:
		return &haproxy{socket: haproxySocket(t.Socket), backend: t.Backend, stateFile: t.ServerStateFile, drain: s.opts.Drain, log: s.log}
	case HandlerCommand:
		return &command{enter: s.opts.EnterCommand, leave: t.LeaveCommand, probe: s.probe}
	default:
		return nil
	}
}

// Enter switches the page on for owner and holds it until Leave or Close. When
// an operator's page is on already, that one serves, and Leave will not end it.
//
// An error means that clients may still reach the application. What could be
// switched on stays on all the same: call Leave whatever Enter returned.
func (s *Switch) Enter(ctx context.Context, owner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enter(ctx, owner)
}

func (s *Switch) enter(ctx context.Context, owner string) error {
	s.letGo()
	m := s.method(s.opts.target())
	if m == nil {
		return nil
	}
	if err := s.leaveElsewhere(ctx); err != nil {
		return err
	}
	r, err := s.ensure(ctx, m, owner)
	var doubt unsure
	if err != nil && !errors.As(err, &doubt) {
		if r != nil {
			s.holdOn(m, owner) // what is on already is to stay on, and the rest may follow
		}
		return fmt.Errorf("enter maintenance: %w", err)
	}
	s.holdOn(m, owner)
	if s.probe != nil {
		perr := s.bounded(ctx, func(ctx context.Context) error { return s.probe.await(ctx, true) })
		if perr != nil {
			return fmt.Errorf("enter maintenance: %w", joined(err, perr))
		}
		if err != nil {
			s.log.Warn("page is on, although a step failed", "task", owner, "error", err)
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("enter maintenance: %w", err)
	}
	s.hold.records.Lock() // the holder may be changing the record too
	defer s.hold.records.Unlock()
	return s.confirm(owner)
}

// confirm notes that the page of owner is on for certain.
func (s *Switch) confirm(owner string) error {
	r, err := s.record.load()
	if err != nil || r == nil || r.Owner != owner || r.Confirmed {
		return err
	}
	r.Confirmed = true
	return s.record.save(r)
}

// ensure makes the page be on for owner. The record it returns is nil when
// nothing was touched: an operator's page serves, or an error came first.
func (s *Switch) ensure(ctx context.Context, m method, owner string) (r *record, err error) {
	if r, err = s.record.load(); err != nil {
		return nil, err
	}
	if r == nil {
		next := newRecord(owner, s.opts.target())
		foreign := false
		if err := s.bounded(ctx, func(ctx context.Context) (err error) {
			foreign, err = m.plan(ctx, next)
			return err
		}); err != nil {
			return nil, err
		}
		if foreign {
			s.log.Info("an operator's maintenance is on and serves", "task", owner)
			return nil, nil
		}
		if err := s.record.save(next); err != nil {
			return nil, err
		}
		r = next
	} else if r.Owner != owner {
		r.Owner = owner
		if err := s.record.save(r); err != nil {
			return r, err
		}
	}
	return r, s.bounded(ctx, func(ctx context.Context) error {
		return m.on(ctx, r, func() error { return s.record.save(r) })
	})
}

// Leave switches off the page that owner entered, and only that one; with none
// it does nothing. Give it a context that outlives the run's.
//
// After an error that leaves the page on, the record stays too, and the switch
// goes on trying by itself until Enter or Close.
func (s *Switch) Leave(ctx context.Context, owner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold != nil && s.hold.owner == owner {
		s.letGo()
	}
	r, err := s.record.load()
	if err != nil {
		return fmt.Errorf("leave maintenance: %w", err)
	}
	if r == nil {
		return nil
	}
	if r.Owner != owner {
		s.log.Info("maintenance belongs to another run and stays", "task", owner, "owner", r.Owner)
		return nil
	}
	return s.leaveSoon(ctx, r)
}

func (s *Switch) leave(ctx context.Context, r *record) error {
	m := s.method(r.Target)
	if m == nil {
		return fmt.Errorf("leave maintenance: the record %s names an unknown handler %q: switch the page off by hand and remove the file",
			string(s.record), r.Target.Handler)
	}
	kept := false
	err := s.bounded(ctx, func(ctx context.Context) (err error) {
		kept, err = m.off(ctx, r)
		return err
	})
	var doubt unsure
	if err != nil && !errors.As(err, &doubt) {
		return fmt.Errorf("leave maintenance: %w", err)
	}
	if rerr := s.record.remove(); rerr != nil {
		return fmt.Errorf("leave maintenance: %w", joined(err, rerr))
	}
	switch {
	case kept:
		s.log.Info("maintenance stays on: it is an operator's", "task", r.Owner)
		return nil
	case s.probe != nil && r.Target == s.opts.target():
		perr := s.bounded(ctx, func(ctx context.Context) error { return s.probe.await(ctx, false) })
		if perr == nil && err != nil {
			s.log.Warn("page is off, although a step failed", "task", r.Owner, "error", err)
		}
		if perr != nil {
			err = joined(err, perr)
		} else {
			err = nil
		}
	case !r.Confirmed:
		err = nil // said already when the page was to go on, for the same reason
	}
	if err != nil {
		return fmt.Errorf("leave maintenance: %w", err)
	}
	return nil
}

// Close stops holding the page, or trying to end it, without switching anything,
// and waits for what is under way.
func (s *Switch) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.letGo()
}

// joined is errors.Join on one line. The second error is not nil.
func joined(first, second error) error {
	if first == nil {
		return second
	}
	return fmt.Errorf("%w; %w", first, second)
}

// bounded runs do with a context that ends after the configured timeout.
func (s *Switch) bounded(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	return do(ctx)
}
