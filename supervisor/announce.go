package supervisor

import (
	"fmt"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/lifeline"
)

// The service manager gives up on a unit that takes long to become ready or to
// stop. Ours may wait for a database, or let a deployment finish, within limits
// of its own: so it asks for more time as long as it lives.
const (
	extendEvery = 10 * time.Second
	extendBy    = 30 * time.Second
)

// announce is the actor that tells the service manager how things stand.
func (s *Supervisor) announce() error {
	var (
		watchdog <-chan time.Time
		said     string // the last STATUS
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
		v := s.board.view()
		message := ""
		if status := v.String(); status != said {
			message, said = "STATUS="+status, status
		}
		if v.ready() && !ready {
			message, ready = join(message, "READY=1"), true
			extend.Stop()
		}
		if v.stopping && !stopping {
			message, stopping = join(message, "STOPPING=1", extension), true
			extend.Reset(extendEvery)
		}
		s.notify(message)
		select {
		case <-s.board.changed:
		case <-watchdog:
			s.notify("WATCHDOG=1")
		case <-extend.C:
			s.notify(extension)
		case <-s.allStopped:
			if !stopping {
				s.notify("STOPPING=1")
			}
			return nil
		}
	}
}

var extension = fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds())

func join(lines ...string) string {
	message := ""
	for _, l := range lines {
		if message != "" && l != "" {
			message += "\n"
		}
		message += l
	}
	return message
}

func (s *Supervisor) notify(message string) {
	if message == "" {
		return
	}
	if err := lifeline.Notify(s.cfg.NotifySocket, message); err != nil {
		s.log.Warn("tell the service manager", "component", "supervisor", "error", err)
	}
}
