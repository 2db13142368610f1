package containerid

import (
	"io"
	"strings"
	"testing"
)

// What engines mount into a container, and how they call its control group, holds
// its id. Nothing of a host does.
func TestWhatHoldsTheID(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("0123456789abcdef", 4)
	other := strings.Repeat("f", 64)
	for _, c := range []struct {
		name string
		find func(io.Reader) string
		text string
		want string
	}{
		{"docker", fromMounts, "1 2 0:3 / / rw - overlay overlay lowerdir=/var/lib/docker/overlay2/" + other + "/diff\n" +
			"10 9 8:1 /var/lib/docker/containers/" + id + "/resolv.conf /etc/resolv.conf rw - ext4 /dev/sda1 rw\n", id},
		{"docker on a disk of its own", fromMounts, "10 9 8:1 /containers/" + id + "/hostname /etc/hostname rw - ext4 /dev/sdb rw\n", id},
		{"podman", fromMounts, "10 9 0:9 /containers/overlay-containers/" + id + "/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw\n", id},
		{"a host with containers", fromMounts, "10 9 0:9 / /var/lib/docker/overlay2/" + other + "/merged rw - overlay overlay rw\n" +
			"11 9 8:1 /" + other + " /srv rw - ext4 /dev/sda1 rw\n", ""},
		{"control group", fromCgroup, "12:pids:/docker/" + id + "\n0::/\n", id},
		{"systemd's control group", fromCgroup, "0::/system.slice/docker-" + id + ".scope\n", id},
		{"a service of the host", fromCgroup, "0::/system.slice/wrktalk-agent.service\n", ""},
	} {
		if got := c.find(strings.NewReader(c.text)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
