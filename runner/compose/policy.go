package compose

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
	"github.com/wrktalk/wrktalk-agent/internal/policy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// maxRefusals bounds how many refusals one sentence tells.
const maxRefusals = 10

// checkPolicy refuses a release that asks for more of this host than the policy
// allows, and says all of it at once, each with its place in the Compose files.
// What serves already and is brought back was asked for before, and is not asked
// again.
func (b *backend) checkPolicy(p *prepared) error {
	list := b.demands(p)
	slices.SortStableFunc(list, func(a, b demand) int { return slices.Compare(a.keys, b.keys) })
	var refused []string
	var places *scan
	for _, d := range list {
		if d.warning != "" {
			b.report.Note("WARNING: %s, %s: %s", d.owner(), strings.Join(d.keys[2:], "."), d.warning)
		}
		why := d.refusal
		if why == "" && d.policy != "" && b.job.Policy.Refuses(d.policy) {
			why = fmt.Sprintf("it %s, which policy.%s refuses", d.does, d.policy)
		}
		if why == "" {
			continue
		}
		if places == nil {
			places = b.places(p)
		}
		text := fmt.Sprintf("%s, %s: %s", d.owner(), strings.Join(d.keys[2:], "."), why)
		if at := places.find(d.name, d.keys...); at != "" {
			text = at + ": " + text
		}
		if !slices.Contains(refused, text) {
			refused = append(refused, text)
		}
	}
	if more := len(refused) - maxRefusals; more > 0 {
		refused = append(refused[:maxRefusals], fmt.Sprintf("and %d more", more))
	}
	if len(refused) == 0 {
		return nil
	}
	return errors.New(strings.Join(refused, "; "))
}

// places reads the Compose files again, for the lines of what is refused.
func (b *backend) places(p *prepared) *scan {
	s, err := scanFiles(b.store.path(p.bundle), b.env, anyFile)
	if err != nil { // although it was read before
		b.report.Note("the lines of what is refused are not known: %v", err)
	}
	if s == nil {
		return &scan{} // it finds nothing
	}
	_ = s.root.Close() // what was read is kept
	return s
}

// hostFiles returns the rule for files of this host that a release names.
func (b *backend) hostFiles(rel protocol.Release) hostFile {
	return func(path string) string {
		path = b.store.hostPath(path, b.store.path(rel.Bundle()), b.job.Compose.Project)
		why, ok := b.workingFile(path)
		if !ok {
			why = b.job.Policy.File(path)
		}
		if why != "" && !same(rel, b.job.Release) {
			b.report.Note("WARNING: release %s served before and is brought back although %s", rel.Version, why)
			return ""
		}
		return why
	}
}

// demand is one thing that a release asks for.
type demand struct {
	keys []string // where in the Compose file, as services, web, privileged
	name string   // what is said there, to find its line
	// policy is the key that decides and does what the release gets, as the end of
	// a sentence.
	policy policy.Key
	does   string
	// refusal is why nobody gets it, whatever the keys say; warning is said in the log.
	refusal, warning string
}

// owner names what asks, as service "web".
func (d demand) owner() string {
	return fmt.Sprintf("%s %q", strings.TrimSuffix(d.keys[0], "s"), d.keys[1])
}

// demands collects what one release asks for.
type demands struct {
	*backend
	dir     string // the release's bundle
	project *types.Project
	list    []demand
}

func (b *backend) demands(p *prepared) []demand {
	d := &demands{backend: b, dir: b.store.path(p.bundle), project: p.local}
	for _, name := range p.local.ServiceNames() {
		s := p.local.Services[name]
		d.rights(s)
		d.namespaces(s)
		d.others(s)
		d.mounts(s)
		d.build(s)
	}
	for _, name := range slices.Sorted(maps.Keys(p.local.Volumes)) {
		d.volume(name, p.local.Volumes[name])
	}
	for _, name := range slices.Sorted(maps.Keys(p.local.Networks)) {
		d.network(name, p.local.Networks[name])
	}
	for _, name := range slices.Sorted(maps.Keys(p.local.Secrets)) {
		d.file(p.local.Secrets[name].File, "secrets", name, "file")
	}
	for _, name := range slices.Sorted(maps.Keys(p.local.Configs)) {
		d.file(p.local.Configs[name].File, "configs", name, "file")
	}
	return d.list
}

// ask adds a demand for what key decides.
func (d *demands) ask(key policy.Key, does, name string, keys ...string) {
	d.list = append(d.list, demand{keys: keys, name: name, policy: key, does: does})
}

// defaultCapabilities are those that containers have anyway.
var defaultCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
	"NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// rights are what a container may do beyond others.
func (d *demands) rights(s types.ServiceConfig) {
	if s.Privileged {
		d.ask(policy.Privileged, "has all rights on this host", "", "services", s.Name, "privileged")
	}
	for key, hooks := range map[string][]types.ServiceHook{"post_start": s.PostStart, "pre_stop": s.PreStop} {
		if slices.ContainsFunc(hooks, func(h types.ServiceHook) bool { return h.Privileged }) {
			d.ask(policy.Privileged, "has all rights on this host", "", "services", s.Name, key)
		}
	}
	for _, c := range s.CapAdd {
		if !slices.Contains(defaultCapabilities, strings.TrimPrefix(strings.ToUpper(c), "CAP_")) {
			d.ask(policy.Capabilities, "gets the capability "+c, c, "services", s.Name, "cap_add")
		}
	}
	for _, o := range s.SecurityOpt {
		if kind, value, ok := strings.Cut(strings.Replace(o, "=", ":", 1), ":"); ok {
			d.securityOption(s, o, kind, value)
		}
	}
	for name := range s.Sysctls {
		if !slices.Contains(policy.SafeSysctls, name) {
			d.ask(policy.Sysctls, "sets the kernel parameter "+name, name, "services", s.Name, "sysctls")
		}
	}
	for _, dev := range s.Devices {
		d.ask(policy.Devices, "gets the device "+dev.Source, dev.Source, "services", s.Name, "devices")
	}
	for _, rule := range s.DeviceCgroupRules {
		d.ask(policy.Devices, fmt.Sprintf("gets devices by the rule %q", rule), rule, "services", s.Name, "device_cgroup_rules")
	}
	if len(s.Gpus) > 0 {
		d.ask(policy.Devices, "gets GPUs", "", "services", s.Name, "gpus")
	}
	if s.Deploy != nil && s.Deploy.Resources.Reservations != nil && len(s.Deploy.Resources.Reservations.Devices) > 0 {
		d.ask(policy.Devices, "gets devices", "", "services", s.Name, "deploy")
	}
	if s.Runtime != "" && s.Runtime != "runc" {
		d.ask(policy.Devices, "asks for the runtime "+s.Runtime, "", "services", s.Name, "runtime")
	}
}

func (d *demands) securityOption(s types.ServiceConfig, option, kind, value string) {
	unconfined := func(what string) { d.ask(policy.Unconfined, what, option, "services", s.Name, "security_opt") }
	switch {
	case kind == "seccomp" && value != "unconfined" && value != "builtin":
		if path := value; !strings.HasPrefix(path, "{") {
			if !filepath.IsAbs(path) {
				path = filepath.Join(d.project.WorkingDir, path)
			}
			d.file(path, "services", s.Name, "security_opt")
		}
		unconfined("brings a seccomp profile of its own")
	case (kind == "seccomp" || kind == "apparmor" || kind == "systempaths") && value == "unconfined":
		unconfined("runs without its " + kind + " profile")
	case kind == "label":
		unconfined("changes its SELinux label")
	}
}

// namespaces are those of the host and of other containers.
func (d *demands) namespaces(s types.ServiceConfig) {
	for _, n := range []struct{ key, value string }{
		{"network_mode", s.NetworkMode}, {"pid", s.Pid}, {"ipc", s.Ipc}, {"uts", s.Uts}, {"userns_mode", s.UserNSMode}, {"cgroup", s.Cgroup},
	} {
		if n.value == "host" {
			d.ask(policy.HostNamespaces, "shares a namespace with this host", "host", "services", s.Name, n.key)
		}
		if other, ok := strings.CutPrefix(n.value, types.ContainerPrefix); ok {
			d.ask(policy.OtherContainers, fmt.Sprintf("shares a namespace with the container %s", other), n.value, "services", s.Name, n.key)
		}
	}
}

// others are containers that are not the release's, and the engine.
func (d *demands) others(s types.ServiceConfig) {
	for _, from := range s.VolumesFrom {
		if other, ok := strings.CutPrefix(from, types.ContainerPrefix); ok {
			d.ask(policy.OtherContainers, "has the volumes of the container "+other, from, "services", s.Name, "volumes_from")
		}
	}
	for _, link := range s.ExternalLinks {
		d.ask(policy.OtherContainers, "is linked to the container "+link, link, "services", s.Name, "external_links")
	}
	if s.UseAPISocket {
		d.ask(policy.EngineSocket, "gets the container engine's socket", "", "services", s.Name, "use_api_socket")
	}
}

// mounts are what of the host a container sees.
func (d *demands) mounts(s types.ServiceConfig) {
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind {
			readOnly := v.ReadOnly && (v.Bind == nil || v.Bind.Recursive != "writable")
			d.mount(v.Source, readOnly, v.Target, "services", s.Name, "volumes")
		}
		if v.Type == types.VolumeTypeNamedPipe || v.Type == types.VolumeTypeCluster {
			d.ask(policy.HostPaths, "mounts a "+v.Type, v.Target, "services", s.Name, "volumes")
		}
	}
}

// mount adds the demand for a path that is mounted.
func (d *demands) mount(path string, readOnly bool, name string, keys ...string) {
	if !filepath.IsAbs(path) || d.own(path) {
		return
	}
	m := demand{keys: keys, name: name}
	var ok bool
	if m.refusal, ok = d.workingFile(path); !ok {
		m.refusal = d.job.Policy.Mount(path, readOnly)
	}
	if inside := d.self().inside(path); m.refusal == "" && inside != path {
		if m.refusal, ok = d.workingFile(inside); !ok {
			m.refusal = d.job.Policy.Mount(inside, readOnly)
		}
	}
	if own := d.job.Policy.Holds(path); m.refusal == "" && own != "" {
		m.warning = fmt.Sprintf("%s holds the agent's own %s: whatever runs there as root may read it", path, own)
	}
	if m.refusal != "" || m.warning != "" {
		d.list = append(d.list, m)
	}
}

// file adds the demand for a file of the host that is to be part of the release,
// when it is one.
func (d *demands) file(path string, keys ...string) {
	if !filepath.IsAbs(path) || d.own(path) {
		return
	}
	if why := d.hostFiles(d.job.Release)(path); why != "" {
		d.list = append(d.list, demand{keys: keys, name: path, refusal: why})
	}
}

// build is what of the host the building of an image gets; checkBuilds refuses the rest.
func (d *demands) build(s types.ServiceConfig) {
	if s.Build != nil && s.Build.Network == "host" {
		d.ask(policy.HostNamespaces, "is built in this host's network", "", "services", s.Name, "build")
	}
}

// volume is a volume that is, or may be, more than the release's own.
func (d *demands) volume(name string, v types.VolumeConfig) {
	keys := []string{"volumes", name, "driver_opts"}
	switch {
	case d.self().hasVolume(v.Name):
		d.list = append(d.list, demand{keys: []string{"volumes", name, "name"}, refusal: fmt.Sprintf("the volume %s is the agent's own, which no release may have", v.Name)})
		return
	case bool(v.External):
		d.ask(policy.OtherContainers, "is a volume of somebody else", "", "volumes", name, "external")
		return
	case v.Name != "" && v.Name != d.project.Name+"_"+name:
		d.ask(policy.OtherContainers, fmt.Sprintf("has the name %s, under which it may be somebody else's", v.Name), "", "volumes", name, "name")
	}
	if v.Driver != "" && v.Driver != "local" {
		d.ask(policy.HostPaths, "has the driver "+v.Driver+", which may reach anything", "", "volumes", name, "driver")
		return
	}
	device, kind, options := v.DriverOpts["device"], v.DriverOpts["type"], v.DriverOpts["o"]
	readOnly := slices.Contains(strings.Split(options, ","), "ro")
	switch {
	case filepath.IsAbs(device):
		d.mount(device, readOnly, device, keys...)
		if strings.HasPrefix(filepath.Clean(device), "/dev/") {
			d.ask(policy.Devices, "mounts the device "+device, device, keys...)
		}
	case device != "" && kind != "tmpfs" && kind != "overlay":
		d.ask(policy.HostPaths, "mounts "+device+" from outside the release", device, keys...)
	}
	for option := range strings.SplitSeq(options, ",") {
		key, dirs, _ := strings.Cut(option, "=")
		if key == "lowerdir" || key == "upperdir" || key == "workdir" {
			for dir := range strings.SplitSeq(dirs, ":") {
				d.mount(dir, key == "lowerdir", option, keys...)
			}
		}
	}
}

// network is a network that is the host's.
func (d *demands) network(name string, n types.NetworkConfig) {
	if n.Driver == "host" || bool(n.External) && n.Name == "host" {
		d.ask(policy.HostNamespaces, "is the network of this host", "", "networks", name, "name")
	}
	if n.Driver == "macvlan" || n.Driver == "ipvlan" {
		d.ask(policy.HostNamespaces, "puts containers on this host's network card", "", "networks", name, "driver")
	}
}

// own reports whether path lies in the release's own directories, links resolved:
// containers may have put some there.
func (d *demands) own(path string) bool {
	laid := d.store.projectPath(d.job.Compose.Project)
	return policy.Within(path, d.dir) || policy.Within(path, filepath.Join(laid, projectDir)) || policy.Within(path, filepath.Join(laid, besideDir))
}

// workingFile says why a release may not have a path below the working directory, ""
// when it may: what a release left beside its directory is not the agent's, even if
// the working directory lies in the agent's state. ok is false for other paths.
func (b *backend) workingFile(path string) (refusal string, ok bool) {
	work := b.store.root.Name()
	if !policy.Within(path, work) {
		return "", false
	}
	for _, name := range []string{
		lockFile, keyFile, protocol.HistoryFile, agentdir.Marker, protocol.BundlesDir, protocol.FormerDir, recordsDir, setAside,
	} {
		own := filepath.Join(work, name)
		if policy.Within(path, own) || policy.Within(own, path) {
			return fmt.Sprintf("%s is, or holds, what the agent keeps for itself", path), true
		}
	}
	return b.job.Policy.Outside(path), true
}
