package supervisor

import (
	"fmt"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/controlpipe"
)

// The service manager gives up on a unit that takes long to become ready or to
// stop. Ours may wait for a database, or let a deployment finish, within limits
// of its own: so it asks for more time as long as it lives.
const (
	extendEvery = 10 * time.Second
	extendBy    = 30 * time.Second
)

// notifyManager is the actor that tells the service manager how the components
// are.
func (s *Supervisor) notifyManager() error {
	var (
		watchdog <-chan time.Time
		sent     string // the last STATUS
		ready    bool   // READY=1 was sent
		stopping bool   // STOPPING=1 was sent
	)
	if s.cfg.Watchdog > 0 {
		t := time.NewTicker(max(s.cfg.Watchdog/2, time.Millisecond))
		defer t.Stop()
		watchdog = t.C
	}
	extend := time.NewTicker(extendEvery)
	defer extend.Stop()
	for {
		v := s.status.snapshot()
		var lines []string
		if status := v.String(); status != sent {
			lines, sent = append(lines, "STATUS="+status), status
		}
		if v.ready() && !ready {
			lines, ready = append(lines, "READY=1"), true
			extend.Stop()
		}
		if v.stopping && !stopping {
			lines, stopping = append(lines, "STOPPING=1", extendTimeout), true
			extend.Reset(extendEvery)
		}
		s.sdNotify(lines...)
		select {
		case <-s.status.changed:
		case <-watchdog:
			// A component that hangs is killed and started anew. Only where that does
			// not help is it for the service manager to start all of them anew.
			if s.status.snapshot().alive() {
				s.sdNotify("WATCHDOG=1")
			}
		case <-extend.C:
			s.sdNotify(extendTimeout)
		case <-s.allStopped:
			if !stopping {
				s.sdNotify("STOPPING=1")
			}
			return nil
		}
	}
}

var extendTimeout = fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds())

// sdNotify sends lines in one message, and nothing where there are none.
func (s *Supervisor) sdNotify(lines ...string) {
	if len(lines) == 0 {
		return
	}
	if err := controlpipe.Notify(s.cfg.NotifySocket, strings.Join(lines, "\n")); err != nil {
		s.log.Warn("tell the service manager", "component", "supervisor", "error", err)
	}
}
