// Package containerid finds out whether this process runs in a container, and what
// the engine that started that may call it. It asks nobody: what it returns are
// names to ask the engine for, which alone knows whether one of them is its own.
package containerid

import (
	"bufio"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Inside reports whether this process runs in a container of Docker or Podman. A
// Kubernetes pod is none: which paths it has in common with the node, no engine that
// can be asked there knows. Nor is a machine whose files were a container's once, which
// /.dockerenv would tell.
func Inside() bool { return len(Candidates()) > 0 }

// Candidates returns the ids that the container which this process runs in may have,
// the likeliest first; nothing outside of containers.
func Candidates() []string {
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return nil
	}
	return fromFiles()
}

var longID = regexp.MustCompile(`[0-9a-f]{64}`)

func fromFiles() []string {
	var ids []string
	for _, from := range []struct {
		path string
		find func(io.Reader) string
	}{{"/proc/self/mountinfo", fromMounts}, {"/proc/self/cgroup", fromCgroup}} {
		f, err := os.Open(from.path)
		if err != nil {
			continue
		}
		if id := from.find(f); id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
		_ = f.Close() // it was only read
	}
	return ids
}

// fromMounts returns the id in the path of the files that engines keep for a
// container and mount into it, from the text of /proc/PID/mountinfo; "" for none.
func fromMounts(r io.Reader) string {
	for s := bufio.NewScanner(r); s.Scan(); {
		// id, parent, device, path in the file system that is mounted, where to
		fields := strings.Fields(s.Text())
		if len(fields) > 4 && slices.Contains([]string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}, fields[4]) {
			if id := longID.FindString(fields[3]); id != "" {
				return id
			}
		}
	}
	return ""
}

// fromCgroup returns the id in the name of a control group, from the text of
// /proc/PID/cgroup; "" for none. In a namespace of its own the group is just "/".
func fromCgroup(r io.Reader) string {
	for s := bufio.NewScanner(r); s.Scan(); {
		if id := longID.FindString(s.Text()); id != "" {
			return id
		}
	}
	return ""
}
