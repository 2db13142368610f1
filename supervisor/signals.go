package supervisor

import (
	"os"

	"golang.org/x/sys/unix"
)

// awaitSignal is the actor that ends the group: at the first request to stop.
func (s *Supervisor) awaitSignal(signals <-chan os.Signal) error {
	for {
		select {
		case sig, ok := <-signals:
			if ok && sig == unix.SIGHUP {
				s.ignore(sig)
				continue
			}
			name := "end of signals"
			if ok {
				name = sig.String()
			}
			s.log.Info("stopping", "component", "supervisor", "state", StateStopping, "signal", name)
			return nil
		case <-s.stop:
			return nil
		}
	}
}

// escalate takes over the signals once the supervisor stops, because the actor
// that took the first has to return for the group to stop.
func (s *Supervisor) escalate(signals <-chan os.Signal) error {
	<-s.stop
	for n := 2; ; {
		select {
		case sig, ok := <-signals:
			switch {
			case !ok:
				signals = nil
				continue
			case sig == unix.SIGHUP:
				s.ignore(sig)
				continue
			case n == 2:
				s.log.Warn("stopping at once: a deployment in flight is interrupted",
					"component", "supervisor", "state", StateStopping, "signal", sig.String())
				close(s.hurry)
			case n == 3:
				s.log.Error("killing what is left", "component", "supervisor", "state", StateStopping, "signal", sig.String())
				close(s.kill)
			}
			n++
		case <-s.allStopped:
			return nil
		}
	}
}

func (s *Supervisor) ignore(sig os.Signal) {
	s.log.Info("signal ignored: restart the agent to load a changed configuration",
		"component", "supervisor", "signal", sig.String())
}
