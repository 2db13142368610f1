package compose

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// labelTrial marks what was made to hear what the engine says of it. It holds the
// project's name. Nothing of it ever runs, and it is gone again at once.
const labelTrial = "com.wrktalk.agent.trial"

// trialPrefix begins the names of networks and volumes that are made for trial.
const trialPrefix = "wrktalk-trial-"

// removalTimeout bounds how long what was made for trial may take to go.
const removalTimeout = 30 * time.Second

// tryOut has the engine itself judge the options of a plan that only it can judge,
// such as runtimes, limits, log drivers and address pools: it is told to make what
// the plan holds, under other names, and to remove it again.
//
// Sources of mounts below where p is laid out are not asked for: they come with the release.
func (e *engine) tryOut(ctx context.Context, p *types.Project, planned *plan) (found []error, err error) {
	t := &trial{engine: e, project: p.Name, workingDir: filepath.Dir(p.WorkingDir)}
	defer func() {
		// Also when the time is up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removalTimeout)
		defer cancel()
		t.removeMade(ctx)
	}()
	if !planned.replacesNetworks { // one that goes may have the addresses of one that comes
		for _, n := range planned.networks {
			if err := t.network(ctx, n); isConnError(err) || ctx.Err() != nil {
				return nil, err
			} else if err != nil {
				found = append(found, fmt.Errorf("network %q: the docker engine refuses it: %s", n.name, engineText(err)))
			}
		}
	}
	for _, v := range planned.volumes {
		if err := t.volume(ctx, v); isConnError(err) || ctx.Err() != nil {
			return nil, err
		} else if err != nil {
			found = append(found, fmt.Errorf("volume %q: the docker engine refuses it: %s", v.Name, engineText(err)))
		}
	}
	tried := map[string]bool{}
	for _, c := range planned.creates {
		if tried[c.service()] || !unusual(c) {
			continue
		}
		tried[c.service()] = true
		if err := t.container(ctx, c); isConnError(err) || ctx.Err() != nil {
			return nil, err
		} else if err != nil {
			found = append(found, fmt.Errorf("service %q: the docker engine refuses its container: %s", c.service(), engineText(err)))
		}
	}
	return found, nil
}

// engineText returns what the engine said in one line.
func engineText(err error) string {
	return deploy.OneLine(strings.TrimPrefix(err.Error(), "Error response from daemon: "))
}

// trial is what is made for trial on behalf of a project.
type trial struct {
	engine     *engine
	project    string
	workingDir string
	cleared    bool     // what a process that died left is gone
	plugins    []string // network and volume drivers that the engine has loaded; nil before it was asked
	networks   []string
	volumes    []string
	ids        []string // of containers
}

// clear removes what a process that died left of its trials.
func (t *trial) clear(ctx context.Context) error {
	if t.cleared {
		return nil
	}
	t.cleared = true
	mine := filters.NewArgs(filters.Arg("label", labelTrial+"="+t.project))
	list, err := t.engine.api.ContainerList(ctx, container.ListOptions{All: true, Filters: mine})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	networks, err := t.engine.api.NetworkList(ctx, network.ListOptions{Filters: mine})
	if err != nil {
		return fmt.Errorf("list networks: %w", err)
	}
	volumes, err := t.engine.api.VolumeList(ctx, volume.ListOptions{Filters: mine})
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	for _, c := range list {
		t.ids = append(t.ids, c.ID)
	}
	for _, n := range networks {
		t.networks = append(t.networks, n.ID)
	}
	for _, v := range volumes.Volumes {
		t.volumes = append(t.volumes, v.Name)
	}
	t.removeMade(ctx)
	return nil
}

// removeMade removes what was made. What stays is removed by the next trial.
func (t *trial) removeMade(ctx context.Context) {
	api := t.engine.api
	for _, id := range t.ids {
		_ = api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	}
	for _, id := range t.networks {
		_ = api.NetworkRemove(ctx, id)
	}
	for _, name := range t.volumes {
		_ = api.VolumeRemove(ctx, name, true)
	}
	t.ids, t.networks, t.volumes = nil, nil, nil
}

// unusual reports whether c asks for anything that an engine may not know or not
// have. What nearly every container asks for is known to be well.
func unusual(c *plannedContainer) bool {
	h := c.host
	r := h.Resources
	r.Ulimits = nil
	limits := len(h.Ulimits)+len(r.Devices)+len(r.DeviceCgroupRules)+len(r.DeviceRequests)+len(r.BlkioWeightDevice)+
		len(r.BlkioDeviceReadBps)+len(r.BlkioDeviceWriteBps)+len(r.BlkioDeviceReadIOps)+len(r.BlkioDeviceWriteIOps) > 0 ||
		r.Memory != 0 || r.MemoryReservation != 0 || r.MemorySwap != 0 || r.MemorySwappiness != nil || r.NanoCPUs != 0 ||
		r.CPUShares != 0 || r.CPUPeriod != 0 || r.CPUQuota != 0 || r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0 ||
		r.CpusetCpus != "" || r.CpusetMems != "" || r.CPUCount != 0 || r.CPUPercent != 0 || r.BlkioWeight != 0 ||
		r.CgroupParent != "" || r.OomKillDisable != nil || r.PidsLimit != nil
	return limits || h.Runtime != "" || h.LogConfig.Type != "" || len(h.LogConfig.Config) > 0 || len(h.SecurityOpt) > 0 ||
		len(h.CapAdd)+len(h.CapDrop) > 0 || h.CgroupnsMode != "" || h.Isolation != "" || h.UsernsMode != "" || h.UTSMode != "" ||
		len(h.StorageOpt) > 0 || len(h.Sysctls) > 0 || len(h.Mounts) > 0 || len(h.Tmpfs) > 0 || h.ShmSize != 0 ||
		h.IpcMode != "" || h.PidMode != "" || h.Init != nil || h.OomScoreAdj != 0 || h.Privileged || c.platform != nil
}

// container makes a container with the options of c, but without anything that the
// engine would make along with it.
func (t *trial) container(ctx context.Context, c *plannedContainer) error {
	if err := t.clear(ctx); err != nil {
		return err
	}
	config, host := *c.config, *c.host
	config.Labels = map[string]string{labelTrial: t.project}
	config.Env, config.Entrypoint, config.Cmd = nil, []string{noProgram}, nil // no secret is left behind
	host.Binds, host.VolumesFrom, host.VolumeDriver, host.Links, host.AutoRemove = nil, nil, "", nil, false
	host.Mounts = nil
	for _, m := range c.host.Mounts {
		ours := strings.HasPrefix(filepath.Clean(m.Source)+"/", filepath.Clean(t.workingDir)+"/")
		if m.Type != mount.TypeTmpfs && (m.Type != mount.TypeBind || ours || m.BindOptions != nil && m.BindOptions.CreateMountpoint) {
			m = mount.Mount{Type: mount.TypeTmpfs, Target: m.Target}
		}
		host.Mounts = append(host.Mounts, m)
	}
	net := c.network
	if isPlanned(string(host.NetworkMode)) {
		host.NetworkMode, net = "none", nil
	}
	if isPlanned(string(host.IpcMode)) {
		host.IpcMode = ""
	}
	if isPlanned(string(host.PidMode)) {
		host.PidMode = ""
	}
	devices := len(host.Devices)+len(host.DeviceRequests) > 0
	if devices {
		config.Healthcheck, config.ExposedPorts = nil, nil
		host.NetworkMode, net, host.PortBindings, host.RestartPolicy = "none", nil, nil, container.RestartPolicy{}
	}
	made, err := t.engine.api.ContainerCreate(ctx, &config, &host, net, c.platform, "")
	if err != nil {
		return err
	}
	t.ids = append(t.ids, made.ID)
	if !devices {
		return nil
	}
	// Whether there are such devices shows at the start only, before it comes to light
	// that there is no such program. Nothing else that is wrong with it counts.
	err = t.engine.api.ContainerStart(ctx, made.ID, container.StartOptions{})
	if err != nil && slices.ContainsFunc(deviceErrors, func(text string) bool { return strings.Contains(err.Error(), text) }) {
		return err
	}
	return nil
}

// noProgram is what no image has.
const noProgram = "/wrktalk-trial"

// deviceErrors is how the engine says that the host lacks a device.
var deviceErrors = []string{"could not select device driver", "error gathering device information"}

// network makes a network with the options of n, unless they are the usual ones.
func (t *trial) network(ctx context.Context, n plannedNetwork) error {
	o := n.options
	usual := (o.Driver == "" || o.Driver == "bridge") && len(o.Options) == 0 && (o.IPAM == nil || o.IPAM.Driver == "" && len(o.IPAM.Config) == 0)
	builtIn := slices.Contains([]string{"", "bridge", "macvlan", "ipvlan", "overlay"}, o.Driver)
	if usual {
		return nil
	}
	if known, err := t.known(ctx, o.Driver); err != nil || known && !builtIn {
		return err // a plugin may set machines in motion
	}
	if err := t.clear(ctx); err != nil {
		return err
	}
	o.Labels = map[string]string{labelTrial: t.project}
	made, err := t.engine.api.NetworkCreate(ctx, trialPrefix+strings.ToLower(rand.Text()[:10]), o)
	if err == nil {
		t.networks = append(t.networks, made.ID)
	}
	return err
}

// volume makes a volume with the options of v, unless they are the usual ones.
func (t *trial) volume(ctx context.Context, v volume.CreateOptions) error {
	local := v.Driver == "" || v.Driver == "local"
	if local && len(v.DriverOpts) == 0 {
		return nil
	}
	if known, err := t.known(ctx, v.Driver); err != nil || known && !local {
		return err
	}
	if err := t.clear(ctx); err != nil {
		return err
	}
	v.Name = trialPrefix + strings.ToLower(rand.Text()[:10])
	v.Labels = map[string]string{labelTrial: t.project}
	v.DriverOpts = maps.Clone(v.DriverOpts)
	_, err := t.engine.api.VolumeCreate(ctx, v)
	if err == nil {
		t.volumes = append(t.volumes, v.Name)
	}
	return err
}

// known reports whether the engine has the network or volume driver loaded. A plugin
// may be there all the same: it is loaded when it is asked for first.
func (t *trial) known(ctx context.Context, driver string) (bool, error) {
	if t.plugins == nil {
		info, err := t.engine.api.Info(ctx)
		if err != nil {
			return false, err
		}
		t.plugins = append(slices.Clone(info.Plugins.Network), info.Plugins.Volume...)
	}
	return slices.Contains(t.plugins, driver), nil
}
