package supervisor

import (
	"os"
	"os/signal"

	"github.com/wrktalk/wrktalk-agent/internal/process"
	"golang.org/x/sys/unix"
)

// reapOrphans is the actor that collects processes nobody waits for, once they
// have ended. They come to the supervisor only where it is process 1, as in a
// container, when a component that started them dies.
func (s *Supervisor) reapOrphans() error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		select {
		case <-ended:
			for _, pid := range process.ReapOrphans() {
				s.log.Debug("stray process collected", "component", "supervisor", "pid", pid)
			}
		case <-s.allStopped:
			return nil
		}
	}
}
