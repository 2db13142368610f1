package compose

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"
)

// checkHostPorts returns the ports that the containers of a plan want and a process
// of the host has. all are the engine's containers. Nothing is found where this
// process does not see the host's network as the engine does.
func (e *engine) checkHostPorts(planned *plan, all []container.Summary) (found []error) {
	var published []publishedPort
	for _, c := range all {
		if c.HostConfig.NetworkMode == "host" && (planned.removed[c.ID] || planned.stopped[c.ID]) {
			return nil // it may be what has them, and goes
		}
		for _, port := range c.Ports {
			if port.PublicPort != 0 {
				published = append(published, publishedPort{ip: port.IP, port: int(port.PublicPort), protocol: port.Type})
			}
		}
	}
	asked := false
	for _, c := range planned.creates {
		for _, w := range portsOf(c) {
			if slices.ContainsFunc(published, w.overlaps) {
				continue // a container has it, not a process of the host
			}
			if !asked && !e.sharesNetwork() {
				return nil
			}
			asked = true
			switch err := w.bind(); {
			case errors.Is(err, syscall.EADDRINUSE):
				found = append(found, fmt.Errorf("service %q: a process of this host has port %d/%s already: stop it, or publish another port", c.service(), w.port, w.protocol))
			case errors.Is(err, syscall.EADDRNOTAVAIL):
				found = append(found, fmt.Errorf("service %q: this host does not have the address %s, at which port %d/%s is to be published", c.service(), w.ip, w.port, w.protocol))
			}
		}
	}
	return found
}

// bind returns nil when a process of the host can have the port.
func (p publishedPort) bind() error {
	family := "4"
	if ip := net.ParseIP(p.ip); ip != nil && ip.To4() == nil {
		family = "6"
	}
	address := net.JoinHostPort(p.ip, strconv.Itoa(p.port))
	switch p.protocol {
	case "tcp":
		l, err := net.Listen("tcp"+family, address)
		if err != nil {
			return err
		}
		return l.Close()
	case "udp":
		c, err := net.ListenPacket("udp"+family, address)
		if err != nil {
			return err
		}
		return c.Close()
	}
	return nil
}

// sharesNetwork reports whether the engine is known to run on this host, in the
// network namespace of this process.
func (e *engine) sharesNetwork() bool {
	path, isSocket := strings.CutPrefix(e.api.DaemonHost(), "unix://")
	if !isSocket {
		return false
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return false
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); controlErr != nil || err != nil || peer.Pid <= 0 {
		return false
	}
	// Anything else may lead to an engine elsewhere. systemd opens the socket of the
	// engine that it starts.
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", peer.Pid))
	if err != nil || !slices.Contains([]string{"dockerd", "systemd"}, strings.TrimSpace(string(name))) {
		return false
	}
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return false
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", peer.Pid))
	return err == nil && os.SameFile(own, theirs)
}
