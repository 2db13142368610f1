package process

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// registry knows the children that Start started. It is locked while one is
// started or reaped, so that ReapOrphans cannot take one for an orphan.
type registry struct {
	sync.Mutex
	pids map[int]bool
}

var children = registry{pids: map[int]bool{}}

func (r *registry) start(cmd *exec.Cmd) error {
	r.Lock()
	defer r.Unlock()
	err := cmd.Start()
	if err == nil {
		r.pids[cmd.Process.Pid] = true
	}
	return err
}

// reap collects a child that has ended.
func (r *registry) reap(cmd *exec.Cmd) {
	r.Lock()
	defer r.Unlock()
	_ = cmd.Wait() // how it ended is in its state
	delete(r.pids, cmd.Process.Pid)
}

// ReapOrphans reaps the ended children of this process that it did not start,
// and returns their numbers. There are such where this process is process 1, as
// in a container: it becomes the parent of every process whose own has ended. As
// zombies they would use up the container's process numbers.
func ReapOrphans() []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	children.Lock()
	defer children.Unlock()
	var reaped []int
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || children.pids[pid] {
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
			reaped = append(reaped, pid)
		}
	}
	return reaped
}
