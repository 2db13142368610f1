package compose

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/client"

	"github.com/wrktalk/wrktalk-agent/internal/containerid"
)

// ownContainer is the container that the agent itself runs in, as the engine knows
// it. Two things are different there. The engine mounts from its host, so that it
// has to be told the paths of the host; and bringing up a release must not replace or
// remove this container, or the run would end in the middle. A nil one is an agent that
// runs beside the engine, or in a container that is not the engine's.
type ownContainer struct {
	id, name string
	labels   map[string]string
	mounts   []ownMount // the longest destination first
}

// ownMount is where a path of the own container lies for the engine.
type ownMount struct {
	destination string
	source      string // "" when the engine cannot mount from there
	why         string // source is "", as the end of a sentence
	volume      string // the name of the volume, if it is one
}

// findOwn returns the container that this process runs in, nil where the engine
// knows none.
func findOwn(ctx context.Context, engine client.APIClient) (*ownContainer, error) {
	for _, id := range containerid.Candidates() {
		info, err := engine.ContainerInspect(ctx, id)
		if errdefs.IsNotFound(err) || err == nil && !strings.HasPrefix(info.ID, id) {
			continue // another engine's, or a container of that name
		}
		if err != nil {
			return nil, fmt.Errorf("inspect the agent's own container: %w", err)
		}
		o := &ownContainer{id: info.ID, name: strings.TrimPrefix(info.Name, "/"), labels: info.Config.Labels}
		for target := range info.HostConfig.Tmpfs {
			o.mounts = append(o.mounts, ownMount{destination: target, why: "is in memory"})
		}
		for _, m := range info.Mounts {
			own, err := resolveMount(ctx, engine, m)
			if err != nil {
				return nil, err
			}
			o.mounts = append(o.mounts, own)
		}
		slices.SortStableFunc(o.mounts, func(a, b ownMount) int { return cmp.Compare(len(b.destination), len(a.destination)) })
		return o, nil
	}
	return nil, nil
}

// self returns the container that the agent runs in, nil for none, and before an engine
// was asked.
func (b *backend) self() *ownContainer {
	if b.engine == nil {
		return nil
	}
	return b.engine.own
}

var anonymousVolume = regexp.MustCompile(`^[0-9a-f]{64}$`)

// resolveMount finds out from where a mount of the own container can be mounted into
// others, as long as they last.
func resolveMount(ctx context.Context, engine client.APIClient, m container.MountPoint) (ownMount, error) {
	own := ownMount{destination: filepath.Clean(m.Destination), volume: m.Name}
	switch {
	case m.Type == mount.TypeBind:
		own.source = m.Source
	case m.Type != mount.TypeVolume:
		own.why = "is in memory"
	case anonymousVolume.MatchString(m.Name):
		own.why = "is in a volume without a name, which goes with the agent's container"
	default:
		v, err := engine.VolumeInspect(ctx, m.Name)
		if err != nil {
			return own, fmt.Errorf("inspect the agent's volume %s: %w", m.Name, err)
		}
		switch {
		case v.Driver == "local" && len(v.Options) == 0:
			own.source = m.Source
		case v.Driver == "local" && strings.Contains(v.Options["o"], "bind") && filepath.IsAbs(v.Options["device"]):
			own.source = v.Options["device"]
		default: // it is mounted only as long as a container has it
			own.why = fmt.Sprintf("is in the volume %s, which the engine itself mounts from elsewhere", m.Name)
		}
	}
	return own, nil
}

// outside returns by which path the engine knows path of this process. Where it knows
// it by none, it returns path itself and why, as the end of a sentence.
func (o *ownContainer) outside(path string) (_, why string) {
	if o == nil {
		return path, ""
	}
	for _, m := range o.mounts {
		if rel, ok := below(m.destination, path); ok {
			if m.source == "" {
				return path, m.why
			}
			return filepath.Join(m.source, rel), ""
		}
	}
	return path, "is in the agent's own container, where nothing is mounted"
}

// inside returns by which path this process has path of the engine's host; path
// itself where it has none.
func (o *ownContainer) inside(path string) string {
	if o == nil {
		return path
	}
	found, longest := path, -1
	for _, m := range o.mounts {
		if rel, ok := below(m.source, path); ok && len(m.source) > longest {
			found, longest = filepath.Join(m.destination, rel), len(m.source)
		}
	}
	return found
}

// below returns path relative to dir; ok is whether it is dir or lies below it. Both
// are absolute, or "" for none.
func below(dir, path string) (rel string, ok bool) {
	if dir == "" || path == "" {
		return "", false
	}
	rel, err := filepath.Rel(dir, path)
	return rel, err == nil && filepath.IsLocal(rel)
}

// hasVolume reports whether the agent's own container has the volume name.
func (o *ownContainer) hasVolume(name string) bool {
	return o != nil && name != "" && slices.ContainsFunc(o.mounts, func(m ownMount) bool { return m.volume == name })
}

// ownPaths returns which paths of the engine's host are the agent's own: where those
// in paths lie there.
func (o *ownContainer) ownPaths(paths []string) (list []string) {
	for _, p := range paths {
		if host, why := o.outside(p); why == "" && host != p {
			list = append(list, host)
		}
	}
	return list
}

// without returns list without the own container.
func (o *ownContainer) without(list []container.Summary) []container.Summary {
	if o == nil {
		return list
	}
	return slices.DeleteFunc(list, func(c container.Summary) bool { return c.ID == o.id })
}

// localPaths gives what list says of the engine's host the paths of this process.
func (o *ownContainer) localPaths(list []container.Summary) []container.Summary {
	if o == nil {
		return list
	}
	for i, c := range list {
		if dir := c.Labels[api.WorkingDirLabel]; dir != "" {
			list[i].Labels = maps.Clone(c.Labels)
			list[i].Labels[api.WorkingDirLabel] = o.inside(dir)
		}
		for j, m := range c.Mounts {
			list[i].Mounts[j].Source = o.inside(m.Source)
		}
	}
	return list
}

// service returns which service of the Compose project the own container is, "" for
// none.
func (o *ownContainer) service(project string) string {
	if o == nil || o.labels[api.ProjectLabel] != project {
		return ""
	}
	return o.labels[api.ServiceLabel]
}

// leaveOwn takes the service that the agent itself runs as out of p. To replace it
// would end the run half-way.
func (b *backend) leaveOwn(p *prepared) error {
	name := b.self().service(p.project.Name)
	if _, ok := p.project.Services[name]; !ok {
		if name != "" {
			b.report.Note("container %s of service %q, of which the release knows nothing, stays: it is the agent itself", b.self().name, name)
		}
		return nil
	}
	project := p.project.WithServicesDisabled(name)
	if len(project.Services) == 0 {
		return fmt.Errorf("the release has no service but %q, which is the agent itself: it cannot replace itself; use docker compose up for that", name)
	}
	p.project = project
	p.remarks = append(p.remarks, fmt.Sprintf("service %q is the agent itself and stays as it is: docker compose up -d %s replaces it", name, name))
	return nil
}

// checkVisible refuses a release that has the engine mount files of its own which that
// cannot see: in their place it would put empty directories. lay is what p is laid
// out by.
func (b *backend) checkVisible(p *prepared, lay *laying) error {
	dir := b.store.projectPath(b.job.Compose.Project)
	host, why := b.self().outside(dir)
	if why == "" {
		return nil
	}
	refuse := func(service, what string) error {
		return fmt.Errorf("service %q is given %s of the release, which the docker engine cannot see: compose.working_dir %s %s; %s",
			service, what, b.job.Compose.WorkingDir, why, mountHint(b.job.Compose.WorkingDir))
	}
	for _, name := range p.local.ServiceNames() {
		s := p.local.Services[name]
		for _, c := range s.Configs {
			if _, ok := below(dir, p.local.Configs[c.Source].File); ok {
				return refuse(name, fmt.Sprintf("the file of config %q", c.Source))
			}
		}
		for _, c := range s.Secrets {
			if _, ok := below(dir, p.local.Secrets[c.Source].File); ok {
				return refuse(name, fmt.Sprintf("the file of secret %q", c.Source))
			}
		}
		for _, v := range s.Volumes {
			rel, ok := below(dir, v.Source)
			if v.Type != types.VolumeTypeBind || !ok {
				continue
			}
			for place := range lay.want {
				if _, ok := below("/"+rel, "/"+place); ok {
					return refuse(name, "files")
				}
			}
			b.report.Note("WARNING: what service %q has at %s lies on the docker engine's host, in %s", name, v.Target, filepath.Join(host, rel))
		}
	}
	return nil
}
