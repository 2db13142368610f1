// Package policy says what a release may ask of the host or the cluster that it is
// deployed to. Whoever may write to the database orders releases, so this is what
// such a writer may do beyond running containers.
//
// What is asked for, the backends find out; here is which of it is refused, and
// which paths of the host a release may have. docs/security.md tells people.
package policy

import "slices"

// Key names one thing that a release can ask for, as in the [policy] section.
type Key string

// What a release can ask for.
const (
	Privileged      Key = "privileged"
	HostNamespaces  Key = "host_namespaces"
	Capabilities    Key = "capabilities"
	Devices         Key = "devices"
	HostPaths       Key = "host_paths"
	EngineSocket    Key = "engine_socket"
	OtherContainers Key = "other_containers"
	Unconfined      Key = "unconfined"
	Sysctls         Key = "sysctls"
	ClusterObjects  Key = "cluster_objects"
	OtherNamespaces Key = "other_namespaces"
)

// Keys lists every Key with what it means, for the reference.
var Keys = [...]struct {
	Key Key
	Doc string
}{
	{Privileged, "privileged containers, and hooks and builds that are"},
	{HostNamespaces, "the host's network, processes, IPC, UTS, user or cgroup namespace, its ports (Helm) or its network card (macvlan, ipvlan)"},
	{Capabilities, "capabilities that containers do not have by default"},
	{Devices, "devices, GPUs, device rules and other runtimes"},
	{HostPaths, "paths of the host outside the release: mounts, files of secrets, configs and env_file, volumes of other drivers, hostPath"},
	{EngineSocket, "the container engine's socket, which is the right to do anything on the host"},
	{OtherContainers, "volumes and namespaces of containers that are not the release's: volumes_from, container:NAME, external volumes, volumes with a name of their own"},
	{Unconfined, "containers without their seccomp, AppArmor or SELinux profile, or with one that the release brings"},
	{Sysctls, "kernel parameters, but those that Kubernetes calls safe"},
	{ClusterObjects, "objects that belong to no namespace (Helm)"},
	{OtherNamespaces, "objects in other namespaces than the release's (Helm)"},
}

// Preset is what holds for a key that is not set itself.
type Preset string

// The presets.
const (
	// PresetDefault refuses nothing that a key stands for.
	PresetDefault Preset = "default"
	// PresetRestricted refuses all of it.
	PresetRestricted Preset = "restricted"
)

// Choice is what a key is set to.
type Choice string

// The choices.
const (
	AsPreset Choice = "preset"
	Allow    Choice = "allow"
	Refuse   Choice = "refuse"
)

// Parents says what becomes of a mount that holds something of the agent's own.
type Parents string

// The choices for such mounts.
const (
	ParentsAsPreset Parents = "preset"
	ParentsAllow    Parents = "allow"
	ParentsReadOnly Parents = "read-only" // only those that cannot be written to; so has the default preset it
	ParentsRefuse   Parents = "refuse"    // so has the preset restricted it
)

// Rules is the policy in force. The zero value refuses nothing but what nobody may
// have. It is passed to wrktalk-deploy as JSON, whose names stay.
type Rules struct {
	Refused []Key `json:"refused,omitempty"`
	// AllowedPaths are files and directories of the host that releases may have
	// whatever else is refused, but for what is the agent's own.
	AllowedPaths []string `json:"allowed_paths,omitempty"`
	// Own are the agent's own files and directories. No release may have them.
	Own []string `json:"own,omitempty"`
	// OwnOutside are the same by the paths of another file system, that of the host when
	// the agent runs in a container. They are there, although this process cannot see them.
	OwnOutside []string `json:"own_outside,omitempty"`
	// Parents is about directories that hold one of Own; "" is ParentsReadOnly.
	Parents Parents `json:"parents,omitempty"`
}

// New returns the rules of a preset and what is chosen for single keys, in the
// order of Keys.
func New(preset Preset, choices [len(Keys)]Choice, parents Parents) Rules {
	r := Rules{Parents: parents}
	for i, k := range Keys {
		if choices[i] == Refuse || choices[i] != Allow && preset == PresetRestricted {
			r.Refused = append(r.Refused, k.Key)
		}
	}
	if parents == ParentsAsPreset || parents == "" {
		r.Parents = ParentsReadOnly
		if preset == PresetRestricted {
			r.Parents = ParentsRefuse
		}
	}
	return r
}

// Refuses reports whether what k stands for is refused.
func (r Rules) Refuses(k Key) bool { return slices.Contains(r.Refused, k) }

// SafeSysctls are the kernel parameters that Kubernetes lets every pod set: they
// are of the container alone.
var SafeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout",
	"net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_wmem",
}
