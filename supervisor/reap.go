package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// nursery knows which of our children are components. Whoever starts one holds
// the lock, so that it cannot be taken for a stray before it is known.
type nursery struct {
	sync.Mutex
	known map[int]bool
}

// reapStrays is the actor that collects processes nobody waits for, once they
// have ended. They come to the supervisor only where it is process 1, as in a
// container, when a component that started them dies; as zombies they would
// use up the container's process numbers.
func (s *Supervisor) reapStrays() error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		select {
		case <-ended:
			s.collect()
		case <-s.allStopped:
			return nil
		}
	}
}

// collect reaps every zombie that is our child and no component.
func (s *Supervisor) collect() {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	s.nursery.Lock()
	defer s.nursery.Unlock()
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || s.nursery.known[pid] {
			continue
		}
		// "pid (name) state ppid ...", and a name may hold anything.
		var state string
		var parent int
		if _, err := fmt.Sscan(string(b[bytes.LastIndexByte(b, ')')+1:]), &state, &parent); err != nil {
			continue
		}
		if state == "Z" && parent == os.Getpid() {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			s.log.Debug("stray process collected", "component", "supervisor", "pid", pid)
		}
	}
}
