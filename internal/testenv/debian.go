package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// errNoDebian is returned where a tree of Debian can be neither made nor found in
// the cache.
var errNoDebian = errors.New("make a tree of Debian")

// The tree that BuildDebian makes: systemd as its init, rpm beside dpkg, and what the
// agent's pages speak of. Its web servers are started by those who want them.
const (
	debianRelease  = "bookworm"
	debianPackages = "systemd,systemd-sysv,dbus,ca-certificates,rpm"
	debianExtras   = "rpmlint jq nginx-light haproxy" // whose dependencies are apt's to resolve
)

// BuildDebian returns an archive of a small Debian system. It is made once, by
// debootstrap, which takes minutes and needs root, and kept below the user's cache
// directory.
func BuildDebian(ctx context.Context) (string, error) {
	path, err := cached("debian.tar", debianRelease+" "+debianPackages+" "+debianExtras, func(path string) error {
		tree, err := os.MkdirTemp(filepath.Dir(path), "debian-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tree)
		for _, args := range [][]string{
			{"debootstrap", "--variant=minbase", "--include=" + debianPackages, debianRelease, tree},
			{"chroot", tree, "sh", "-ec", `export DEBIAN_FRONTEND=noninteractive
				printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
				chmod +x /usr/sbin/policy-rc.d
				apt-get update -q
				apt-get install -q -y --no-install-recommends ` + debianExtras + `
				rm /usr/sbin/policy-rc.d`},
			{
				"tar", "-C", tree, "--exclude=./var/cache/apt", "--exclude=./var/lib/apt/lists",
				"--exclude=./etc/systemd/system/multi-user.target.wants/nginx.service", "--exclude=./etc/systemd/system/multi-user.target.wants/haproxy.service", "-cf", path, ".",
			},
		} {
			cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "15"}, args...)...)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("run %s: %w: %s", args[0], err, tail(out))
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoDebian, err)
	}
	return path, nil
}

// Host is a container that runs Debian with systemd, as a machine of its own
// but for the network, which is the host's, and the Docker engine, whose socket it
// has.
type Host struct {
	t    testing.TB
	Name string // of the container
}

var debianImage struct {
	sync.Once
	ref string
	err error
}

// DebianHost starts a Host with the host's directory files at /files, read-only, and
// removes it when the test ends. It skips the test where there is no tree of Debian to
// make it of, and fails it in CI.
func DebianHost(t testing.TB, files string) *Host {
	t.Helper()
	Docker(t)
	image := &debianImage
	image.Do(func() { image.ref, image.err = importDebian(context.Background()) })
	if errors.Is(image.err, errNoDebian) {
		Missing(t, "debootstrap", image.err)
	}
	if image.err != nil {
		t.Fatal(image.err)
	}
	name := ComposeProject(t) // by whose label it is removed, also by the next process
	DockerOutput(t, "run", "--detach", "--name", name, "--label", "com.docker.compose.project="+name,
		"--network", "host", "--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
		"--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup", "--tmpfs", "/run", "--tmpfs", "/tmp",
		"--volume", "/var/run/docker.sock:/run/docker.sock", "--volume", files+":/files:ro",
		"--env", "container=docker", image.ref,
		// systemd hands credentials over by mounts, which it shares by itself only where it is in no container.
		"/bin/sh", "-c", "mount --make-rshared / && exec /lib/systemd/systemd")
	h := &Host{t, name}
	h.awaitBoot()
	return h
}

// awaitBoot waits until systemd has started everything.
func (h *Host) awaitBoot() {
	h.t.Helper()
	// What the state is called once everything was started does not matter. Until systemd
	// answers there is nothing to wait on.
	out, err := h.Try(`until [ -S /run/dbus/system_bus_socket ]; do sleep 0.1; done; systemctl is-system-running --wait`)
	if out != "running" && out != "degraded" {
		h.t.Fatalf("systemd in the container is %q: %v", out, err)
	}
}

// Reboot shuts the host down, has during run meanwhile, and starts it again when it is
// down. As on a machine, /run and /tmp are empty then.
func (h *Host) Reboot(during func()) {
	h.t.Helper()
	h.Run("systemctl --no-block reboot")
	during()
	DockerOutput(h.t, "wait", h.Name)
	DockerOutput(h.t, "start", h.Name)
	h.awaitBoot()
}

// importDebian makes an image of the tree, which Main removes.
func importDebian(ctx context.Context) (string, error) {
	archive, err := BuildDebian(ctx)
	if err != nil {
		return "", err
	}
	ref := "wrktalk-test-debian-" + uniqueName()
	done, err := claimDocker(claimedImage, ref)
	if err != nil {
		return "", err
	}
	f, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := runDocker(ctx, f, "import", "-", ref); err != nil {
		return "", err
	}
	AtExit(func() {
		if RemoveImage(context.Background(), ref) == nil {
			done()
		}
	})
	return ref, nil
}

// Try runs a shell script as root and returns what it printed on both outputs,
// and an error where it fails.
func (h *Host) Try(script string) (string, error) {
	cmd := exec.Command("docker", "exec", "--interactive", h.Name, "/bin/sh", "-ec", script)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Run does the same and fails the test where the script does.
func (h *Host) Run(script string) string {
	h.t.Helper()
	out, err := h.Try(script)
	if err != nil {
		h.t.Fatalf("on the host %s: %v\n%s", script, err, out)
	}
	return out
}

// Write makes content the file at path, which root alone may read.
func (h *Host) Write(path string, content string) {
	h.t.Helper()
	cmd := exec.Command("docker", "exec", "--interactive", h.Name, "/bin/sh", "-ec", `umask 077; cat > "$0"`, path)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("write %s on the host: %v\n%s", path, err, out)
	}
}
