package maintenance

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// process is a process that is told from a later one with the same number.
type process struct {
	pid   int
	start string // field 22 of /proc/PID/stat: when it began
}

// nginxWorkers returns the workers of every nginx in this process's PID
// namespace, except those that are on their way out already. Those of
// containers do not count: the host's reload does not replace them.
func nginxWorkers() []process {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !bytes.HasPrefix(title, []byte("nginx: worker process")) || bytes.Contains(title, []byte("shutting down")) {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || ns != own {
			continue
		}
		if start := startTime(pid); start != "" {
			found = append(found, process{pid, start})
		}
	}
	return found
}

// anyAlive reports whether one of ps still runs.
func anyAlive(ps []process) bool {
	for _, p := range ps {
		if startTime(p.pid) == p.start {
			return true
		}
	}
	return false
}

// startTime returns when a process began, "" for one that is gone or only waits
// to be collected.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field is the name, in parentheses, and may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 || string(fields[0]) == "Z" {
		return ""
	}
	return string(fields[19])
}
