package maintenance

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// nginxWorkers returns the process ids of the workers of every nginx on this
// machine, except those that are on their way out already.
func nginxWorkers() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && isNginxWorker(pid) && !bytes.Contains(commandLine(pid), []byte("shutting down")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func anyNginxWorker(pids []int) bool { return slices.ContainsFunc(pids, isNginxWorker) }

func isNginxWorker(pid int) bool {
	return bytes.HasPrefix(commandLine(pid), []byte("nginx: worker process"))
}

// commandLine returns the title of a process, nothing for one that has ended.
func commandLine(pid int) []byte {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return b
}
