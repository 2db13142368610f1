// Package maintenance switches a maintenance page on before a deployment and
// off after it: through nginx, through HAProxy, or through commands.
//
// Whoever finds the page on must be able to tell whose it is. The agent keeps a
// record of what it switched, written before anything is switched and removed
// after it was switched back; a page without such a record is an operator's, and
// is neither taken over nor ended.
package maintenance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/wrktalk/wrktalk-agent/internal/background"
)

// handler is one way to switch the page. All of its methods may be repeated.
type handler interface {
	// prepare looks before anything is touched. It reports whether an operator's
	// maintenance is on, or fills in r what disable will need.
	prepare(ctx context.Context, r *record) (foreign bool, err error)
	// enable switches the page on, or on again; save stores r when it has changed.
	enable(ctx context.Context, r *record, save func() error) error
	// disable undoes what r tells of. It reports whether the page stays because an
	// operator wants it.
	disable(ctx context.Context, r *record) (kept bool, err error)
	// state reports whether the page is on, and whether it is the one r tells of;
	// r may be nil.
	state(ctx context.Context, r *record) (on, ours bool, err error)
	check(ctx context.Context) []Finding
}

// unverifiedError is the error of a switch that was made, but may not have taken
// effect. The probe, where there is one, tells.
type unverifiedError struct{ error }

func (e unverifiedError) Unwrap() error { return e.error }

func isUnverified(err error) bool {
	var u unverifiedError
	return errors.As(err, &u)
}

// Switch is the page of one target. Any goroutine may call its methods; Enter,
// Leave, Recover and Close wait for each other.
type Switch struct {
	opts   Options
	record recordFile
	probe  *probe // nil without a probe URL
	log    *slog.Logger

	mu sync.Mutex // one of Enter, Leave, Recover and Close at a time
	// worker enforces the page of owner, or with owner "" retries to end one. It
	// is the only one to change the record in between.
	worker *background.Worker
	owner  string
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

// handler returns the way to switch t, nil for none.
func (s *Switch) handler(t target) handler {
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

// Enter switches the page on for owner and keeps it on until Leave or Close.
// When an operator's page is on already, that one serves, and Leave will not end
// it.
//
// An error means that clients may still reach the application. What could be
// switched on stays on all the same: call Leave whatever Enter returned.
func (s *Switch) Enter(ctx context.Context, owner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enter(ctx, owner)
}

func (s *Switch) enter(ctx context.Context, owner string) error {
	s.stopWorker()
	h := s.handler(s.opts.target())
	if h == nil {
		return nil
	}
	if err := s.leaveFormerTarget(ctx); err != nil {
		return err
	}
	switched, err := s.enable(ctx, h, owner)
	if err == nil || isUnverified(err) {
		switched = true
		err = s.verify(ctx, true, owner, err)
	}
	if err == nil {
		err = s.confirm(owner)
	}
	if switched { // even if it failed: what is on is to stay on, and the rest may follow
		s.startEnforcing(h, owner)
	}
	if err != nil {
		return fmt.Errorf("enter maintenance: %w", err)
	}
	return nil
}

// enable makes the page be on for owner. It reports whether the agent has
// switched anything: not when an operator's page serves, or an error came first.
func (s *Switch) enable(ctx context.Context, h handler, owner string) (switched bool, err error) {
	r, err := s.record.load()
	if err != nil {
		return false, err
	}
	if r == nil {
		next := newRecord(owner, s.opts.target())
		foreign := false
		if err := s.bounded(ctx, func(ctx context.Context) (err error) {
			foreign, err = h.prepare(ctx, next)
			return err
		}); err != nil {
			return false, err
		}
		if foreign {
			s.log.Info("an operator's maintenance is on and serves", "task", owner)
			return false, nil
		}
		if err := s.record.save(next); err != nil {
			return false, err
		}
		r = next
	} else if r.Owner != owner {
		r.Owner = owner
		if err := s.record.save(r); err != nil {
			return true, err
		}
	}
	return true, s.bounded(ctx, func(ctx context.Context) error {
		return h.enable(ctx, r, func() error { return s.record.save(r) })
	})
}

// verify asks the probe, where there is one, whether the page is on, or off. Its
// answer outweighs err, the one of a switch that could not be verified.
func (s *Switch) verify(ctx context.Context, on bool, owner string, err error) error {
	if s.probe == nil {
		return err
	}
	perr := s.bounded(ctx, func(ctx context.Context) error { return s.probe.await(ctx, on) })
	if perr != nil {
		return joined(err, perr)
	}
	if err != nil {
		state := "off"
		if on {
			state = "on"
		}
		s.log.Warn("page is "+state+", although a step failed", "task", owner, "error", err)
	}
	return nil
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

// Leave switches off the page that owner entered, and only that one; with none
// it does nothing. Give it a context that outlives the run's.
//
// After an error that leaves the page on, the record stays too, and the switch
// goes on trying by itself until Enter or Close.
func (s *Switch) Leave(ctx context.Context, owner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner == owner {
		s.stopWorker()
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
	return s.leaveWithRetry(ctx, r)
}

// leaveFormerTarget switches back what a record tells of when the configuration
// names another web server, or another file, now.
func (s *Switch) leaveFormerTarget(ctx context.Context) error {
	r, err := s.record.load()
	if err != nil {
		return fmt.Errorf("enter maintenance: %w", err)
	}
	if r == nil || r.Target == s.opts.target() {
		return nil
	}
	return s.leave(ctx, r)
}

func (s *Switch) leave(ctx context.Context, r *record) error {
	h := s.handler(r.Target)
	if h == nil {
		return fmt.Errorf("leave maintenance: the record %s names an unknown handler %q: switch the page off by hand and remove the file",
			string(s.record), r.Target.Handler)
	}
	kept := false
	err := s.bounded(ctx, func(ctx context.Context) (err error) {
		kept, err = h.disable(ctx, r)
		return err
	})
	if err != nil && !isUnverified(err) {
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
		err = s.verify(ctx, false, r.Owner, err)
	case !r.Confirmed:
		err = nil // said already when the page was to go on, for the same reason
	}
	if err != nil {
		return fmt.Errorf("leave maintenance: %w", err)
	}
	return nil
}

// Recover ends a page that a crash, or a failed Leave, left on: when the record
// tells of an owner other than activeOwner ("" is nobody), it switches the page
// off. For activeOwner itself it sees to it that the page is on and stays so.
// Call it at start. After an error that leaves the page on, the switch goes on
// trying by itself until Enter or Close; State tells when it is off.
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
		if err := s.leaveWithRetry(ctx, r); err != nil {
			return err
		}
		s.log.Warn("ended the maintenance of a run that is over", "task", r.Owner)
		return nil
	case s.owner == activeOwner:
		return nil
	default:
		return s.enter(ctx, activeOwner)
	}
}

// State reports whether clients get the page, and whether it is the agent's. It
// asks the probe URL where there is one. Without one, a flag file counts only if
// its nginx could be reloaded, or if it is an operator's.
func (s *Switch) State(ctx context.Context) (on, byUs bool, err error) {
	h := s.handler(s.opts.target())
	if h == nil {
		return false, false, nil
	}
	r, err := s.record.load()
	if err != nil {
		return false, false, err
	}
	ours := false
	err = s.bounded(ctx, func(ctx context.Context) (err error) {
		on, ours, err = h.state(ctx, r)
		return err
	})
	switch {
	case err != nil:
	case s.probe != nil:
		err = s.bounded(ctx, func(ctx context.Context) error {
			a, err := s.probe.ask(ctx)
			on = a.page()
			return err
		})
	case ours && !r.Confirmed:
		on = false
	}
	if err != nil {
		return false, false, fmt.Errorf("look at maintenance: %w", err)
	}
	return on, on && ours, nil
}

// Close stops enforcing the page, or retrying to end it, without switching
// anything, and waits for what is under way.
func (s *Switch) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopWorker()
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
