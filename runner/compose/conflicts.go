package compose

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"
)

// checkConflicts returns what the containers of a plan want and another container
// has that stays, or a process of the host: its name, or a port of the host.
func (e *engine) checkConflicts(ctx context.Context, p *types.Project, planned *plan) (found []error, _ error) {
	all, err := e.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	staying := slices.DeleteFunc(slices.Clone(all), func(c container.Summary) bool { return planned.removed[c.ID] })
	for _, c := range planned.creates {
		for _, other := range staying {
			if nameOf(other) == c.name && other.Labels[api.ProjectLabel] != p.Name {
				found = append(found, fmt.Errorf("service %q: the container name %q is taken by a container %s: remove or rename that one, or choose another container_name", c.service(), c.name, ownerOf(other, p.Name)))
			}
		}
	}
	var ports []publishedPort
	for _, other := range staying {
		if planned.stopped[other.ID] {
			continue // it may have given its ports up before they are asked for
		}
		for _, port := range other.Ports {
			if port.PublicPort != 0 {
				ports = append(ports, publishedPort{port.IP, int(port.PublicPort), port.Type, fmt.Sprintf("by container %s %s: stop that one, or publish another port", nameOf(other), ownerOf(other, p.Name))})
			}
		}
	}
	inTurn := runInTurn(p)
	if err := e.markUnpublished(ctx, p, planned); err != nil {
		return nil, err
	}
	for _, c := range planned.creates {
		wanted := portsOf(c)
		for _, w := range wanted {
			if i := slices.IndexFunc(ports, w.overlaps); i >= 0 {
				found = append(found, fmt.Errorf("service %q: port %d/%s of the host is published %s", c.service(), w.port, w.protocol, ports[i].by))
			}
		}
		if !inTurn[c.service()] {
			ports = append(ports, wanted...)
		}
	}
	return append(found, e.checkHostPorts(planned, all)...), nil
}

// ownerOf says whose container c is, for somebody who deploys project.
func ownerOf(c container.Summary, project string) string {
	switch owner := c.Labels[api.ProjectLabel]; owner {
	case "":
		return "that docker compose did not make"
	case project:
		return fmt.Sprintf("of service %q", c.Labels[api.ServiceLabel])
	default:
		return fmt.Sprintf("of the Compose project %q", owner)
	}
}

// runInTurn returns the services that end before others start: what these hold
// then is free again.
func runInTurn(p *types.Project) map[string]bool {
	ends := map[string]bool{}
	for _, s := range p.Services {
		for name, dep := range s.DependsOn {
			ends[name] = ends[name] || dep.Condition == types.ServiceConditionCompletedSuccessfully
		}
	}
	return ends
}

// markUnpublished marks the containers of a plan whose ports the engine will not
// publish: those in the host's network, or in networks that lead nowhere.
func (e *engine) markUnpublished(ctx context.Context, p *types.Project, planned *plan) error {
	publishes := map[string]bool{"": true} // by the name of the network
	for _, n := range p.Networks {
		publishes[n.Name] = (n.Driver == "" || n.Driver == "bridge") && !n.Internal
		if !n.External {
			continue
		}
		list, err := e.networks(ctx, n.Name)
		if err != nil {
			return err
		}
		publishes[n.Name] = len(list) == 1 && list[0].Driver == "bridge" && !list[0].Internal
	}
	for _, c := range planned.creates {
		published := publishes[string(c.host.NetworkMode)]
		for key := range p.Services[c.service()].Networks {
			published = published || publishes[p.Networks[key].Name]
		}
		if !published {
			c.unpublished = true
		}
	}
	return nil
}

// publishedPort is a port of the host that a container has or wants.
type publishedPort struct {
	ip       string // "" for every address
	port     int
	protocol string
	by       string // who has it and what to do, as the end of a sentence
}

// portsOf returns the ports that c has to have. One of a range, or any that is free,
// is none of them.
func portsOf(c *plannedContainer) (list []publishedPort) {
	if c.unpublished {
		return nil
	}
	for target, bindings := range c.host.PortBindings {
		for _, binding := range bindings {
			if port, err := strconv.Atoi(binding.HostPort); err == nil && port > 0 {
				list = append(list, publishedPort{binding.HostIP, port, target.Proto(), fmt.Sprintf("by service %q of this release, too: publish another one", c.service())})
			}
		}
	}
	slices.SortFunc(list, func(a, b publishedPort) int { return a.port - b.port })
	return list
}

// overlaps reports whether only one of two containers can have its port.
func (p publishedPort) overlaps(other publishedPort) bool {
	if p.port != other.port || p.protocol != other.protocol {
		return false
	}
	a, b := net.ParseIP(p.ip), net.ParseIP(other.ip)
	switch {
	case p.ip == "" || other.ip == "":
		return true
	case a == nil || b == nil || (a.To4() == nil) != (b.To4() == nil):
		return false
	}
	return a.IsUnspecified() || b.IsUnspecified() || a.Equal(b)
}
