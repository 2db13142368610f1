package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Mount returns why a release may not mount path, an absolute path of the host
// outside of the release; "" when it may. Links and .. are resolved as far as this
// host has the path.
func (r Rules) Mount(path string, readOnly bool) string {
	p := placeOf(path)
	if why := r.own(p, readOnly); why != "" {
		return why
	}
	if r.Allowed(path) {
		return ""
	}
	if why := r.socket(p); why != "" || !r.Refuses(EngineSocket) && isEngineSocket(p) {
		return why
	}
	return r.Outside(path)
}

// socket refuses what gives the engine's socket.
func (r Rules) socket(p place) string {
	if !r.Refuses(EngineSocket) || engineSocketIn(p) == "" {
		return ""
	}
	return fmt.Sprintf("%s gives it the container engine's socket, which policy.engine_socket refuses", p.name)
}

// File returns why a release may not be given the file or directory path of the
// host, an absolute path outside of the release, as part of itself: by env_file, a
// secret, a config, an include, a build context. "" when it may.
func (r Rules) File(path string) string {
	p := placeOf(path)
	if why := r.own(p, true); why != "" {
		return why
	}
	if r.Allowed(path) {
		return ""
	}
	if why := r.socket(p); why != "" {
		return why
	}
	if why := r.Outside(path); why != "" {
		return why
	}
	if isHostSecret(p) || holdsHostSecret(p) {
		return fmt.Sprintf("%s is, or holds, a secret of the host itself: put it into policy.allowed_paths if releases are to have it", path)
	}
	return ""
}

// Allowed reports whether policy.allowed_paths holds path or a directory above it.
func (r Rules) Allowed(path string) bool {
	p := placeOf(path)
	return slices.ContainsFunc(r.AllowedPaths, func(allowed string) bool { return p.realWithin(placeOf(allowed)) })
}

// Holds returns what of the agent's own lies below path, "" for nothing.
func (r Rules) Holds(path string) string {
	p := placeOf(path)
	for i, own := range slices.Concat(r.Own, r.OwnOutside) {
		if o := placeOf(own); (i >= len(r.Own) || o.exists()) && o.within(p) {
			return own
		}
	}
	return ""
}

// Outside returns why a release may not have path, which lies outside of it and is
// nobody's that needs more care; "" when it may.
func (r Rules) Outside(path string) string {
	if !r.Refuses(HostPaths) || r.Allowed(path) {
		return ""
	}
	return fmt.Sprintf("%s is outside of the release, which policy.host_paths refuses: put it into the release, or into policy.allowed_paths", path)
}

// own refuses what is the agent's own, or holds it.
func (r Rules) own(p place, readOnly bool) string {
	for i, own := range slices.Concat(r.Own, r.OwnOutside) {
		o := placeOf(own)
		if p.within(o) {
			return fmt.Sprintf("%s is the agent's own (%s), which no release may have", p.name, own)
		}
		if r.Parents == ParentsAllow || r.Parents != ParentsRefuse && readOnly || i < len(r.Own) && !o.exists() || !o.within(p) {
			continue
		}
		if r.Parents == ParentsRefuse {
			return fmt.Sprintf("%s holds the agent's own %s, which policy.own_parents refuses: use a directory below it", p.name, own)
		}
		return fmt.Sprintf("%s holds the agent's own %s and could be written to: mount it read-only, use a directory below it, or set policy.own_parents to allow", p.name, own)
	}
	return ""
}

// place is a path of the host, by all the names it is known to have.
type place struct {
	name string   // as it was given
	real []string // with links resolved
	all  []string // those, and the clean one
}

func placeOf(path string) place {
	clean := filepath.Clean(path)
	p := place{name: path, real: []string{resolve(clean)}}
	// A link before a .. leads elsewhere for whoever opens the path than for the
	// engine, which cleans it first.
	if real := resolve(path); real != p.real[0] {
		p.real = append(p.real, real)
	}
	p.all = append([]string{clean}, p.real...)
	return p
}

func (p place) exists() bool {
	_, err := os.Stat(p.name)
	return err == nil
}

// within reports whether p is dir or lies below it, by any of its names.
func (p place) within(dir place) bool {
	for _, name := range p.all {
		if slices.ContainsFunc(dir.all, func(d string) bool { return below(name, d) }) {
			return true
		}
	}
	return p.sameWithin(dir)
}

// realWithin reports whether p lies in dir whichever of its real names is used.
func (p place) realWithin(dir place) bool {
	for _, name := range p.real {
		if !slices.ContainsFunc(dir.all, func(d string) bool { return below(name, d) }) {
			return false
		}
	}
	return true
}

// sameWithin compares files instead of names: a directory may be mounted at a
// second place.
func (p place) sameWithin(dir place) bool {
	want, err := os.Stat(dir.real[0])
	if err != nil {
		return false
	}
	for _, name := range p.real {
		for {
			if have, err := os.Stat(name); err == nil && os.SameFile(have, want) {
				return true
			}
			if name == filepath.Dir(name) {
				break
			}
			name = filepath.Dir(name)
		}
	}
	return false
}

// below reports whether the clean path name is dir or lies below it.
func below(name, dir string) bool {
	rel, err := filepath.Rel(dir, name)
	return err == nil && filepath.IsLocal(rel)
}

// resolve returns path with its links resolved, as far as it exists.
func resolve(path string) string {
	const mostLinks = 40 // to what does not exist
	rest := ""
	for head, links := path, 0; ; {
		if real, err := filepath.EvalSymlinks(head); err == nil {
			return filepath.Join(real, rest)
		}
		if link, err := os.Readlink(head); err == nil && links < mostLinks {
			if !filepath.IsAbs(link) {
				link = filepath.Join(filepath.Dir(head), link)
			}
			head, links = link, links+1
			continue
		}
		dir := filepath.Dir(head)
		if dir == head {
			return filepath.Clean(path)
		}
		head, rest = dir, filepath.Join(filepath.Base(head), rest)
	}
}

// engineSockets are where container engines listen.
var engineSockets = []string{
	"/run/docker.sock", "/var/run/docker.sock",
	"/run/podman/podman.sock", "/var/run/podman/podman.sock",
	"/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock",
	"/run/crio/crio.sock", "/var/run/crio/crio.sock",
	"/run/k3s/containerd/containerd.sock",
}

var engineSocketNames = []string{"docker.sock", "podman.sock", "containerd.sock", "crio.sock"}

// isEngineSocket reports whether p is a socket of a container engine.
func isEngineSocket(p place) bool {
	return slices.ContainsFunc(p.all, func(name string) bool { return slices.Contains(engineSocketNames, filepath.Base(name)) }) ||
		slices.ContainsFunc(dockerHost(), func(s string) bool { return p.within(placeOf(s)) })
}

// engineSocketIn returns a socket of a container engine that p is or holds, ""
// for none. A read-only mount gives it as well: to connect is not to write.
func engineSocketIn(p place) string {
	if isEngineSocket(p) {
		return p.name
	}
	for _, s := range append(dockerHost(), engineSockets...) {
		if placeOf(s).within(p) {
			return s
		}
	}
	return ""
}

// dockerHost returns the socket that DOCKER_HOST names.
func dockerHost() []string {
	if path, ok := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://"); ok && filepath.IsAbs(path) {
		return []string{path}
	}
	return nil
}

// hostSecrets are what the host itself keeps closed: the passwords of its users,
// its keys, its processes, and what its engines and its Kubernetes keep of others.
var hostSecrets = []string{
	"/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/security/opasswd",
	"/etc/sudoers", "/etc/sudoers.d", "/etc/krb5.keytab",
	"/etc/kubernetes", "/var/lib/kubelet", "/var/lib/rancher", "/etc/rancher",
	"/var/lib/docker", "/var/lib/containerd",
	"/proc", "/dev/mem", "/dev/kmsg",
}

// holdsHostSecret reports whether one of those lies below p.
func holdsHostSecret(p place) bool {
	return slices.ContainsFunc(hostSecrets, func(s string) bool {
		_, err := os.Lstat(s)
		return err == nil && slices.ContainsFunc(p.real, func(name string) bool { return below(s, name) })
	})
}

// isHostSecret reports whether p is one of those, or a person's keys.
func isHostSecret(p place) bool {
	for _, s := range hostSecrets {
		if slices.ContainsFunc(p.all, func(name string) bool { return below(name, s) }) {
			return true
		}
	}
	for _, name := range p.all {
		dir, base := filepath.Split(name)
		if strings.HasPrefix(base, "ssh_host_") && strings.HasSuffix(base, "_key") || base == ".pgpass" {
			return true
		}
		for part := range strings.SplitSeq(dir, "/") {
			if part == ".ssh" || part == ".gnupg" {
				return true
			}
		}
	}
	return false
}

// Within reports whether path is dir or lies below it, whatever links it goes
// through.
func Within(path, dir string) bool { return placeOf(path).realWithin(placeOf(dir)) }
