package compose

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/versions"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// checkEngine asks the engine for whatever bringing p up needs of it, so that what
// Compose would come upon half-way is found while nothing was changed yet. What
// docker compose deploys is never refused: only what is certain to fail counts. All
// that is found is said at once.
func (b *backend) checkEngine(ctx context.Context, p *prepared) error {
	project := p.project
	found, err := b.engine.checkFeatures(ctx, project)
	if err != nil {
		return err
	}
	for _, check := range []func(context.Context, *types.Project) ([]error, error){b.engine.checkNetworks, b.engine.checkVolumes} {
		more, err := check(ctx, project)
		if err != nil {
			return err
		}
		found = append(found, more...)
	}
	if len(found) > 0 {
		return joinLine(found)
	}
	planned, err := b.rehearse(ctx, project, p.release.Version, b.first)
	switch {
	case err == nil:
	case isConnError(err) || ctx.Err() != nil:
		return err
	case b.engine.ping(ctx) != nil:
		return &connError{err}
	default:
		return fmt.Errorf("docker compose cannot bring the release up: %s", deploy.OneLine(err.Error()))
	}
	if found, err = b.engine.checkConflicts(ctx, project, planned); err != nil {
		return err
	}
	refused, err := b.engine.tryOut(ctx, project, planned)
	if err != nil {
		return err
	}
	return joinLine(append(found, refused...))
}

// feature is an option of a Compose file that older engines do not know, and that
// the Compose library or the Docker client refuses for them. What they ignore
// instead is none.
type feature struct {
	option string
	api    string // since which version of the API
	engine string // the same, as people know it
	used   func(types.ServiceConfig) bool
}

var features = []feature{
	{"healthcheck.start_interval", "1.44", "25.0", func(s types.ServiceConfig) bool {
		return s.HealthCheck != nil && s.HealthCheck.StartInterval != nil
	}},
	{"networks.*.mac_address", "1.44", "25.0", func(s types.ServiceConfig) bool {
		return anyNetwork(s, func(n types.ServiceNetworkConfig) bool { return n.MacAddress != "" })
	}},
	{"volumes.*.bind.recursive: readonly", "1.44", "25.0", func(s types.ServiceConfig) bool {
		return slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Bind != nil && v.Bind.Recursive == "readonly" })
	}},
	{"a volume of type image", "1.48", "28.0", func(s types.ServiceConfig) bool {
		return slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Type == types.VolumeTypeImage })
	}},
	{"networks.*.interface_name", "1.49", "28.1", func(s types.ServiceConfig) bool {
		return anyNetwork(s, func(n types.ServiceNetworkConfig) bool { return n.InterfaceName != "" })
	}},
}

func anyNetwork(s types.ServiceConfig, is func(types.ServiceNetworkConfig) bool) bool {
	for _, n := range s.Networks {
		if n != nil && is(*n) {
			return true
		}
	}
	return false
}

// checkFeatures returns the options of p that this engine does not know, and names
// that no engine could give.
func (e *engine) checkFeatures(ctx context.Context, p *types.Project) (found []error, _ error) {
	version, err := e.api.ServerVersion(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the docker engine for its version: %w", err)
	}
	named := map[string]string{}
	for _, name := range p.ServiceNames() {
		s := p.Services[name]
		if other, ok := named[s.ContainerName]; ok {
			found = append(found, fmt.Errorf("services %q and %q have the same container_name %q: give each its own", other, name, s.ContainerName))
		} else if s.ContainerName != "" {
			named[s.ContainerName] = name
		}
		for _, f := range features {
			if f.used(s) && versions.LessThan(version.APIVersion, f.api) {
				found = append(found, fmt.Errorf("service %q: %s needs Docker Engine %s, and this one is %s: leave it out, or upgrade Docker Engine", name, f.option, f.engine, version.Version))
			}
		}
	}
	return found, nil
}

// checkNetworks returns the networks of p that are not on the host and should be, or
// are there and belong to somebody else.
func (e *engine) checkNetworks(ctx context.Context, p *types.Project) (found []error, _ error) {
	for _, key := range p.NetworkNames() {
		n := p.Networks[key]
		list, err := e.networks(ctx, n.Name)
		if err != nil {
			return nil, err
		}
		users := servicesOf(p, func(s types.ServiceConfig) bool { _, ok := s.Networks[key]; return ok })
		switch {
		case bool(n.External) && len(list) == 0:
			if joined, err := e.inSwarm(ctx); err != nil || joined {
				if err != nil {
					return nil, err
				}
				continue // a network of another node shows only when it is used
			}
			found = append(found, fmt.Errorf("the external network %q%s is not on this host: create it (docker network create %s), or leave out external", n.Name, users, n.Name))
		case bool(n.External) && len(list) > 1:
			found = append(found, fmt.Errorf("this host has %d networks called %q%s: remove the others, or name one by its id", len(list), n.Name, users))
		case bool(n.External) || len(list) == 0:
		case list[0].Name == n.Name && list[0].Labels[api.NetworkLabel] != key:
			found = append(found, fmt.Errorf("the network %q%s is on this host already and was not made for it: say external: true to use it, or give the release's own network another name", n.Name, users))
		}
	}
	return found, nil
}

// networks returns the engine's networks whose name or id is name.
func (e *engine) networks(ctx context.Context, name string) ([]network.Summary, error) {
	list, err := e.api.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("name", name))})
	if err != nil {
		return nil, fmt.Errorf("look for network %s: %w", name, err)
	}
	list = slices.DeleteFunc(list, func(n network.Summary) bool { return n.Name != name && n.ID != name })
	if len(list) > 0 {
		return list, nil
	}
	n, err := e.api.NetworkInspect(ctx, name, network.InspectOptions{})
	switch {
	case errdefs.IsNotFound(err), err == nil && n.ID != name:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look for network %s: %w", name, err)
	}
	return []network.Summary{n}, nil
}

func (e *engine) inSwarm(ctx context.Context) (bool, error) {
	info, err := e.api.Info(ctx)
	if err != nil {
		return false, fmt.Errorf("ask the docker engine about itself: %w", err)
	}
	return info.Swarm.LocalNodeState == swarm.LocalNodeStateActive || info.Swarm.LocalNodeState == swarm.LocalNodeStateLocked, nil
}

// checkVolumes returns the external volumes of p that are not on the host.
func (e *engine) checkVolumes(ctx context.Context, p *types.Project) (found []error, _ error) {
	for _, key := range p.VolumeNames() {
		v := p.Volumes[key]
		if !v.External {
			continue
		}
		_, err := e.api.VolumeInspect(ctx, v.Name)
		switch {
		case errdefs.IsNotFound(err):
			users := servicesOf(p, func(s types.ServiceConfig) bool {
				return slices.ContainsFunc(s.Volumes, func(m types.ServiceVolumeConfig) bool {
					return m.Type == types.VolumeTypeVolume && m.Source == key
				})
			})
			found = append(found, fmt.Errorf("the external volume %q%s is not on this host: create it (docker volume create %s), or leave out external", v.Name, users, v.Name))
		case err != nil:
			return nil, fmt.Errorf("look for volume %s: %w", v.Name, err)
		}
	}
	return found, nil
}

// servicesOf names the services of p that use something, as the middle of a
// sentence.
func servicesOf(p *types.Project, use func(types.ServiceConfig) bool) string {
	var names []string
	for _, name := range p.ServiceNames() {
		if use(p.Services[name]) {
			names = append(names, fmt.Sprintf("%q", name))
		}
	}
	switch len(names) {
	case 0:
		return ""
	case 1:
		return " of service " + names[0]
	default:
		return " of services " + strings.Join(names, ", ")
	}
}
