package supervisor

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// awaitSignal is the actor that ends the group: at the first request to stop.
func (s *Supervisor) awaitSignal(signals <-chan os.Signal) error {
	for {
		select {
		case sig, ok := <-signals:
			if ok && sig == unix.SIGHUP {
				s.reload()
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
				s.log.Info("signal ignored: the agent stops", "component", "supervisor", "signal", sig.String())
				continue
			case n == 2:
				s.log.Warn("stopping at once: a deployment in flight is interrupted",
					"component", "supervisor", "state", StateStopping, "signal", sig.String())
				close(s.stopNow)
			case n == 3:
				s.log.Error("killing what is left", "component", "supervisor", "state", StateStopping, "signal", sig.String())
				close(s.killNow)
			}
			n++
		case <-s.allStopped:
			return nil
		}
	}
}

// reload has the components started anew with the configuration as it is now, each
// once it is idle. One that cannot be used changes nothing.
func (s *Supervisor) reload() {
	if s.cfg.Reload == nil {
		s.log.Info("signal ignored: restart the agent to load a changed configuration", "component", "supervisor", "signal", unix.SIGHUP.String())
		return
	}
	r, err := s.cfg.Reload()
	if err == nil && len(r.Components) != len(s.actors) {
		err = errors.New("it asks for other components: restart the agent")
	}
	if err == nil {
		err = checkSnapshot(r.Snapshot)
	}
	if err != nil {
		s.log.Error("the changed configuration is not used", "component", "supervisor", "error", err)
		return
	}
	for _, w := range r.Warnings {
		s.log.Warn(w, "component", "supervisor")
	}
	s.log.Info("the changed configuration is used by each component once it is idle", "component", "supervisor")
	for i, a := range s.actors {
		a.configure(r.Components[i], r.Snapshot)
	}
}
