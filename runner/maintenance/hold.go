package maintenance

import (
	"context"
	"sync"
	"time"
)

// How often a page that is on is looked at. HAProxy forgets it with each
// reload, and every look later is requests that reach the application.
const (
	holdNginx   = time.Second
	holdHAProxy = 100 * time.Millisecond
)

// hold keeps a page on, or tries to get one off, in a goroutine of its own.
type hold struct {
	owner   string // whose page is kept on; "" for one that is to go
	cancel  context.CancelFunc
	done    chan struct{}
	records sync.Mutex // held while the record is changed
}

// holdOn starts to keep the page on for owner.
func (s *Switch) holdOn(m method, owner string) {
	ctx, cancel := context.WithCancel(context.Background())
	h := &hold{owner: owner, cancel: cancel, done: make(chan struct{})}
	s.hold = h
	every := holdNginx
	switch s.opts.Handler {
	case HandlerHAProxy:
		every = holdHAProxy
	case HandlerCommand:
		// What a command did cannot be looked at; repeating it might do harm.
		close(h.done)
		return
	}
	go func() {
		defer close(h.done)
		s.keep(ctx, m, h, every)
	}()
}

// letGo ends the hold, and waits until nothing is under way.
func (s *Switch) letGo() {
	if s.hold != nil {
		s.hold.cancel()
		<-s.hold.done
		s.hold = nil
	}
}

func (s *Switch) keep(ctx context.Context, m method, h *hold, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		restored, err := s.keepOnce(ctx, m, h)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && err.Error() != said:
			said = err.Error()
			s.log.Error("maintenance cannot be held: clients may reach the application", "task", h.owner, "error", err)
		case err == nil && (restored || said != ""):
			said = ""
			s.log.Warn("maintenance had been switched off by someone else, and is on again", "task", h.owner)
		}
	}
}

func (s *Switch) keepOnce(ctx context.Context, m method, h *hold) (restored bool, err error) {
	h.records.Lock()
	defer h.records.Unlock()
	r, err := s.record.load()
	if err != nil {
		return false, err
	}
	on := false
	if err := s.bounded(ctx, func(ctx context.Context) (err error) {
		on, _, err = m.look(ctx, r)
		return err
	}); err != nil || on {
		return false, err
	}
	if _, err = s.ensure(ctx, m, h.owner); err != nil {
		return false, err
	}
	return true, s.confirm(h.owner)
}
