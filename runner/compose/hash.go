package compose

import (
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/compose/v2/pkg/api"
	composelib "github.com/docker/compose/v2/pkg/compose"
	"github.com/docker/docker/api/types/container"
)

// configHashes returns what the library would write into the config-hash label
// of each service of p, given the project's containers by service, sorted by
// name. A service that shares the namespaces or volumes of another one has the
// other's container id in its hash.
func configHashes(p *types.Project, containers map[string][]container.Summary) (map[string]string, error) {
	id := func(service string) string {
		if list := containers[service]; len(list) > 0 {
			return list[0].ID
		}
		return ""
	}
	shared := func(mode string) string {
		if service, ok := strings.CutPrefix(mode, types.ServicePrefix); ok && id(service) != "" {
			return types.ContainerPrefix + id(service)
		}
		return mode
	}
	hashes := map[string]string{}
	for name, s := range p.WithServicesDisabled().Services { // a copy: hashing changes it
		for i, from := range s.VolumesFrom {
			switch spec := strings.Split(from, ":"); {
			case spec[0] == "container" && len(spec) > 1:
				s.VolumesFrom[i] = spec[1]
			case id(spec[0]) != "":
				s.VolumesFrom[i] = id(spec[0])
			}
		}
		s.NetworkMode, s.Ipc, s.Pid = shared(s.NetworkMode), shared(s.Ipc), shared(s.Pid)
		hash, err := composelib.ServiceHash(s)
		if err != nil {
			return nil, err
		}
		hashes[name] = hash
	}
	return hashes, nil
}

// byService sorts a project's containers by service and, within it, by name.
func byService(list []container.Summary) map[string][]container.Summary {
	sorted := map[string][]container.Summary{}
	for _, c := range list {
		name := c.Labels[api.ServiceLabel]
		sorted[name] = append(sorted[name], c)
	}
	for _, list := range sorted {
		slices.SortFunc(list, func(a, b container.Summary) int { return strings.Compare(nameOf(a), nameOf(b)) })
	}
	return sorted
}

// nameOf returns the container's own name, not those of links to it.
func nameOf(c container.Summary) string {
	for _, n := range c.Names {
		if strings.LastIndex(n, "/") == 0 {
			return n[1:]
		}
	}
	return c.ID
}

var replacement = regexp.MustCompile(`^[0-9a-f]{12}_`)

// isReplacement reports whether c still has the name the library gives a
// container until the one it replaces is gone.
func isReplacement(c container.Summary) bool { return replacement.MatchString(nameOf(c)) }
