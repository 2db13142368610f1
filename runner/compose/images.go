package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// pullsAtOnce bounds how many images are pulled at the same time.
const pullsAtOnce = 3

// imageRequirement is one image that a project wants.
type imageRequirement struct {
	service  string // one that wants it, for messages
	image    string
	platform string
	policy   string
	refresh  time.Duration // with types.PullPolicyRefresh
	builder  string        // the service that has a build section for it, "" for none
	rebuild  bool          // it is built even if it is there
}

// stricterThan reports whether r asks for more pulling than old does.
func (r imageRequirement) stricterThan(old imageRequirement) bool {
	rank := func(policy string) int {
		switch policy {
		case types.PullPolicyAlways:
			return 3
		case types.PullPolicyRefresh:
			return 2
		case types.PullPolicyNever:
			return 0
		default: // missing, if_not_present
			return 1
		}
	}
	if rank(r.policy) != rank(old.policy) {
		return rank(r.policy) > rank(old.policy)
	}
	return r.policy == types.PullPolicyRefresh && r.refresh < old.refresh
}

// imageRequirements lists the images of p, each once. The strictest policy of an image
// that several services share wins.
func imageRequirements(p *types.Project) ([]imageRequirement, error) {
	byImage := map[string]imageRequirement{}
	for _, name := range p.ServiceNames() {
		s := p.Services[name]
		if s.Image == "" && s.Build == nil {
			return nil, fmt.Errorf("service %q has neither image nor build", name)
		}
		policy, refresh, err := s.GetPullPolicy()
		if err != nil {
			return nil, fmt.Errorf("service %q: read pull_policy: %w", name, err)
		}
		r := imageRequirement{service: name, image: api.GetImageNameOrDefault(s, p.Name), platform: s.Platform, policy: policy, refresh: refresh}
		if s.Image == "" || policy == types.PullPolicyBuild {
			r.policy, r.rebuild = types.PullPolicyNever, policy == types.PullPolicyBuild
		}
		if s.Build != nil {
			r.builder = name
		}
		if r.platform == "" {
			r.platform = p.Environment["DOCKER_DEFAULT_PLATFORM"]
		}
		key := r.image + " " + r.platform
		old, ok := byImage[key]
		builder, rebuild := cmp.Or(old.builder, r.builder), old.rebuild || r.rebuild
		if ok && !r.stricterThan(old) {
			r = old
		}
		r.builder, r.rebuild = builder, rebuild
		byImage[key] = r
	}
	return slices.SortedFunc(maps.Values(byImage), func(a, b imageRequirement) int { return strings.Compare(a.service, b.service) }), nil
}

// ensureImages makes every image of a release present, pulling as the services'
// pull_policy says; with missingOnly only what is not there at all. A pull that
// fails for an image which is there is no error. What has a build section is built
// once for each release, unless it can be pulled. Afterwards no service asks for a
// pull, so that nothing is fetched once containers are touched.
func (b *backend) ensureImages(ctx context.Context, rel *prepared, missingOnly bool) error {
	p := rel.project
	list, err := imageRequirements(p)
	if err != nil {
		return err
	}
	var pulls []imageRequirement
	var builds []string
	present := map[string]bool{}
	for _, r := range list {
		if r.builder != "" {
			how, err := b.wayToBuilt(ctx, rel, r, missingOnly)
			if err != nil {
				return err
			}
			switch how {
			case useBuilt:
				continue
			case buildNow:
				builds = append(builds, r.builder)
				continue
			}
		}
		tagged, ok, err := b.engine.image(ctx, r)
		if err != nil {
			return err
		}
		present[r.image+" "+r.platform] = ok
		pull := !ok && r.policy != types.PullPolicyNever
		if ok && !missingOnly {
			pull = r.policy == types.PullPolicyAlways ||
				r.policy == types.PullPolicyRefresh && time.Since(tagged) > r.refresh
		}
		switch {
		case pull:
			pulls = append(pulls, r)
		case ok:
		case r.builder != "":
			builds = append(builds, r.builder)
		default:
			return fmt.Errorf("image %s of service %q is not on this host, and its pull_policy forbids to pull it", r.image, r.service)
		}
	}
	if len(pulls) > 0 {
		b.report.Event(task.PhasePulling, "pulling %s", deploy.Count(len(pulls), "image"))
	}
	// Each pull goes on when another fails: all that is wrong is said at once.
	var group errgroup.Group
	group.SetLimit(pullsAtOnce)
	failed, unpulled := make([]error, len(pulls)), make([]string, len(pulls))
	for i, r := range pulls {
		group.Go(func() error {
			err := b.engine.pull(ctx, p, r)
			switch {
			case err == nil:
			case context.Cause(ctx) != nil:
				failed[i] = context.Cause(ctx)
			case isConnError(err) || b.engine.ping(ctx) != nil: // the engine's fault, not the registry's
				failed[i] = &connError{fmt.Errorf("pull image %s of service %q: %w", r.image, r.service, err)}
			case present[r.image+" "+r.platform]:
				b.report.Note("image %s could not be pulled; the one on this host is used: %s", r.image, deploy.OneLine(err.Error()))
			case r.builder != "":
				b.report.Note("image %s could not be pulled, and is built: %s", r.image, deploy.OneLine(err.Error()))
				unpulled[i] = r.builder
			default:
				failed[i] = fmt.Errorf("pull image %s of service %q: %s%s", r.image, r.service, deploy.OneLine(err.Error()), loginAdvice(r.image, err))
			}
			return nil
		})
	}
	_ = group.Wait() // errors are in failed
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if i := slices.IndexFunc(failed, isConnError); i >= 0 {
		return failed[i] // all of it again, when the engine is back
	}
	if err := joinLine(failed); err != nil {
		return err
	}
	builds = append(builds, slices.DeleteFunc(unpulled, func(name string) bool { return name == "" })...)
	if len(builds) > 0 {
		slices.Sort(builds)
		if err := b.build(ctx, rel, slices.Compact(builds)); err != nil {
			return err
		}
	}
	if err := b.nameBuilt(ctx, rel); err != nil {
		return err
	}
	for name, s := range p.Services {
		s.PullPolicy = types.PullPolicyNever
		p.Services[name] = s
	}
	return nil
}

// How an image that has a build section comes to be there.
type wayToBuilt int

const (
	useBuilt   wayToBuilt = iota // the release has built it already
	buildNow                     // it is built now
	likeOthers                   // it is used or pulled like any other, and built only if that fails
)

// wayToBuilt says how r, which has a build section, comes to be there. What was built
// for another release is no good: its sources were others. An image of that name
// which was not built here is used, as docker compose does.
func (b *backend) wayToBuilt(ctx context.Context, rel *prepared, r imageRequirement, missingOnly bool) (wayToBuilt, error) {
	p := rel.project
	rebuild := r.rebuild && !missingOnly && b.job.Kind == task.KindDeploy
	_, built, err := b.engine.inspectImage(ctx, builtTag(p.Name, r.builder, rel.bundle))
	switch {
	case err != nil:
		return 0, err
	case built && !rebuild:
		return useBuilt, nil
	case rebuild:
		return buildNow, nil
	}
	info, found, err := b.engine.inspectImage(ctx, r.image)
	switch {
	case err != nil:
		return 0, err
	case missingOnly && found:
		return likeOthers, nil // what ran before
	case p.Services[r.builder].Image == "", found && isBuiltImage(info, p.Name, r.builder):
		return buildNow, nil
	}
	return likeOthers, nil
}

// inspectImage returns what the engine knows about an image, if it has it.
func (e *engine) inspectImage(ctx context.Context, ref string) (info image.InspectResponse, found bool, err error) {
	info, err = e.api.ImageInspect(ctx, ref)
	switch {
	case errdefs.IsNotFound(err):
		return info, false, nil
	case err != nil:
		return info, false, fmt.Errorf("look for image %s: %w", ref, err)
	}
	return info, true, nil
}

// joinLine joins errors to one of a single line; nil when there are none.
func joinLine(errs []error) error {
	var texts []string
	for _, err := range errs {
		if err != nil {
			texts = append(texts, err.Error())
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return errors.New(strings.Join(texts, "; "))
}

// image reports whether the image is on the host, for the wanted platform, and
// when it was last tagged.
func (e *engine) image(ctx context.Context, r imageRequirement) (tagged time.Time, ok bool, err error) {
	info, found, err := e.inspectImage(ctx, r.image)
	if err != nil || !found {
		return tagged, false, err
	}
	if r.platform != "" {
		want, err := platforms.Parse(r.platform)
		if err != nil {
			return tagged, false, fmt.Errorf("service %q: platform: %w", r.service, err)
		}
		if !platforms.NewMatcher(want).Match(specs.Platform{Architecture: info.Architecture, OS: info.Os, Variant: info.Variant}) {
			return tagged, false, nil
		}
	}
	return info.Metadata.LastTagTime, true, nil
}

// imageIDs returns which image each reference stood for when the containers in
// list were made, those apart that the task made in an attempt that died.
func (b *backend) imageIDs(ctx context.Context, list []container.Summary) map[string]string {
	ids := map[string]string{}
	for _, c := range list { // the newest first
		if b.sameTask(c) {
			continue
		}
		info, err := b.engine.api.ContainerInspect(ctx, c.ID)
		if err != nil || info.Config == nil {
			continue // it matters only if a restoration does
		}
		if ref := info.Config.Image; ids[ref] == "" {
			ids[ref] = c.ImageID
		}
	}
	return ids
}

// pull fetches one image with the host's registry credentials.
func (e *engine) pull(ctx context.Context, p *types.Project, r imageRequirement) error {
	one := types.ServiceConfig{Name: r.service, Image: r.image, Platform: r.platform, PullPolicy: types.PullPolicyAlways}
	err := e.compose.Pull(ctx, &types.Project{
		Name:        p.Name,
		Environment: p.Environment,
		Services:    types.Services{r.service: one},
	}, api.PullOptions{Quiet: true})
	if client.IsErrConnectionFailed(err) {
		return &connError{unreachable(e.api.DaemonHost(), err)}
	}
	return err
}

// refusals are what registries and the engine say to those who have not logged in, or as
// somebody else. A public registry says the same of what there is not.
var refusals = []string{"unauthorized", "no basic auth credentials", "authentication required", "pull access denied", "denied:", "403 Forbidden"}

// loginAdvice returns what to do about a pull that a registry refused, as the end of a
// sentence; "" for any other failure.
func loginAdvice(image string, err error) string {
	if !slices.ContainsFunc(refusals, func(text string) bool { return strings.Contains(err.Error(), text) }) {
		return ""
	}
	login := "docker login"
	if named, err := reference.ParseNormalizedNamed(image); err == nil && reference.Domain(named) != "docker.io" {
		login += " " + reference.Domain(named)
	}
	return "; if the image is there, log in to its registry as the agent's user: " + login
}
