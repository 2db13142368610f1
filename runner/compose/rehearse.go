package compose

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

// plan is what bringing a release up would have the engine do.
type plan struct {
	creates  []*plannedContainer
	removed  map[string]bool // containers that go, by id
	stopped  map[string]bool // containers that are stopped on the way, by id
	networks []plannedNetwork
	// replacesNetworks is true when a network that is there is removed first.
	replacesNetworks bool
	volumes          []volume.CreateOptions
}

// plannedContainer is a container that would be created.
type plannedContainer struct {
	name     string // in the end
	id       string // what the library was told
	config   *container.Config
	host     *container.HostConfig
	network  *network.NetworkingConfig
	platform *specs.Platform

	unpublished bool // the engine will not publish its ports
}

func (c *plannedContainer) service() string { return c.config.Labels[api.ServiceLabel] }

// plannedNetwork is a network that would be created.
type plannedNetwork struct {
	name    string
	options network.CreateOptions
}

// rehearse has the library bring p up against an engine that it can ask but not
// change, and returns what it would have done. Its error is one that the library
// would have come upon in the middle of its work.
func (b *backend) rehearse(ctx context.Context, p *types.Project, version string, first bool) (*plan, error) {
	r := &rehearsal{APIClient: steady{b.engine.api, b.engine.own}, plan: plan{removed: map[string]bool{}, stopped: map[string]bool{}}}
	lib, err := newLibrary(ctx, r, io.Discard)
	if err != nil {
		return nil, err
	}
	project := p.WithServicesDisabled() // the library changes the project while it works on it
	rel := b.job.Release
	rel.Version = version
	label(project, *b.job, rel, first)
	if err := lib.Create(ctx, project, createOptions(project)); err != nil {
		return nil, err
	}
	return &r.plan, nil
}

// rehearsal is a Docker client that answers questions from the engine and only
// notes what it is told to do. It covers what api.Compose.Create calls.
type rehearsal struct {
	client.APIClient
	mu   sync.Mutex
	plan plan
}

func (r *rehearsal) ContainerCreate(_ context.Context, config *container.Config, host *container.HostConfig, net *network.NetworkingConfig, platform *specs.Platform, name string) (container.CreateResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &plannedContainer{name: name, id: "planned:" + name, config: config, host: host, network: net, platform: platform}
	r.plan.creates = append(r.plan.creates, c)
	return container.CreateResponse{ID: c.id}, nil
}

// planned returns the container that the library was told to have created, nil for
// one of the engine's.
func (r *rehearsal) planned(id string) *plannedContainer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.IndexFunc(r.plan.creates, func(c *plannedContainer) bool { return c.id == id }); i >= 0 {
		return r.plan.creates[i]
	}
	return nil
}

func (r *rehearsal) ContainerInspect(ctx context.Context, id string) (container.InspectResponse, error) {
	c := r.planned(id)
	if c == nil {
		return r.APIClient.ContainerInspect(ctx, id)
	}
	return container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: c.id, Name: "/" + c.name, HostConfig: c.host,
			State: &container.State{Status: container.StateCreated},
		},
		Config:          c.config,
		NetworkSettings: &container.NetworkSettings{},
	}, nil
}

func (r *rehearsal) ContainerRename(_ context.Context, from, to string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.plan.creates {
		if c.name == from {
			c.name = to
		}
	}
	return nil
}

func (r *rehearsal) ContainerStop(_ context.Context, id string, _ container.StopOptions) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plan.stopped[id] = true
	return nil
}

func (r *rehearsal) ContainerRemove(_ context.Context, id string, _ container.RemoveOptions) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plan.removed[id] = true
	return nil
}

func (r *rehearsal) NetworkCreate(_ context.Context, name string, options network.CreateOptions) (network.CreateResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plan.networks = append(r.plan.networks, plannedNetwork{name, options})
	return network.CreateResponse{ID: "planned:" + name}, nil
}

func (r *rehearsal) NetworkRemove(context.Context, string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plan.replacesNetworks = true
	return nil
}

func (r *rehearsal) VolumeCreate(_ context.Context, options volume.CreateOptions) (volume.Volume, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plan.volumes = append(r.plan.volumes, options)
	return volume.Volume{Name: options.Name, Driver: options.Driver, Labels: options.Labels}, nil
}

// What follows is done by nobody, and nothing comes of it that anybody asks for.

func (r *rehearsal) ContainerStart(context.Context, string, container.StartOptions) error { return nil }

func (r *rehearsal) ContainerRestart(context.Context, string, container.StopOptions) error {
	return nil
}

func (r *rehearsal) ContainerKill(context.Context, string, string) error { return nil }

func (r *rehearsal) NetworkConnect(context.Context, string, string, *network.EndpointSettings) error {
	return nil
}

func (r *rehearsal) NetworkDisconnect(context.Context, string, string, bool) error { return nil }

func (r *rehearsal) VolumeRemove(context.Context, string, bool) error { return nil }

// Hooks of services run commands in containers.
func (r *rehearsal) ContainerExecCreate(context.Context, string, container.ExecOptions) (container.ExecCreateResponse, error) {
	return container.ExecCreateResponse{ID: "planned"}, nil
}

func (r *rehearsal) ContainerExecStart(context.Context, string, container.ExecStartOptions) error {
	return nil
}

func (r *rehearsal) ContainerExecInspect(context.Context, string) (container.ExecInspect, error) {
	return container.ExecInspect{}, nil
}

func (r *rehearsal) CopyToContainer(context.Context, string, string, io.Reader, container.CopyToContainerOptions) error {
	return nil
}

// isPlanned reports whether id stands for something that is not there yet.
func isPlanned(id string) bool { return strings.Contains(id, "planned:") }
