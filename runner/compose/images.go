package compose

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// pullsAtOnce bounds how many images are pulled at the same time.
const pullsAtOnce = 3

// need is one image that a project wants.
type need struct {
	service  string // one that wants it, for messages
	image    string
	platform string
	policy   string
	refresh  time.Duration // with types.PullPolicyRefresh
	built    bool          // has a build section
}

// stricter reports whether n asks for more pulling than old does.
func (n need) stricter(old need) bool {
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
	if rank(n.policy) != rank(old.policy) {
		return rank(n.policy) > rank(old.policy)
	}
	return n.policy == types.PullPolicyRefresh && n.refresh < old.refresh
}

// needs lists the images of p, each once. The strictest policy of an image
// that several services share wins.
func needs(p *types.Project) ([]need, error) {
	byImage := map[string]need{}
	for _, name := range p.ServiceNames() {
		s := p.Services[name]
		if s.Image == "" && s.Build == nil {
			return nil, fmt.Errorf("service %q has neither image nor build", name)
		}
		policy, refresh, err := s.GetPullPolicy()
		if err != nil {
			return nil, fmt.Errorf("service %q: read pull_policy: %w", name, err)
		}
		if s.Image == "" || policy == types.PullPolicyBuild {
			policy = types.PullPolicyNever
		}
		n := need{name, api.GetImageNameOrDefault(s, p.Name), s.Platform, policy, refresh, s.Build != nil}
		if n.platform == "" {
			n.platform = p.Environment["DOCKER_DEFAULT_PLATFORM"]
		}
		key := n.image + " " + n.platform
		if old, ok := byImage[key]; !ok || n.stricter(old) {
			byImage[key] = n
		}
	}
	list := make([]need, 0, len(byImage))
	for _, n := range byImage {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b need) int { return strings.Compare(a.service, b.service) })
	return list, nil
}

// ensureImages makes every image of p present, pulling as the services'
// pull_policy says; with missingOnly only what is not there at all. A pull that
// fails for an image which is there is no error. Afterwards no service of p
// asks for a pull, so that nothing is fetched once containers are touched.
func (r *run) ensureImages(ctx context.Context, p *types.Project, missingOnly bool) error {
	list, err := needs(p)
	if err != nil {
		return err
	}
	var pulls []need
	present := map[string]bool{}
	for _, n := range list {
		tagged, ok, err := r.engine.image(ctx, n)
		if err != nil {
			return err
		}
		present[n.image+" "+n.platform] = ok
		pull := !ok && n.policy != types.PullPolicyNever
		if ok && !missingOnly {
			pull = n.policy == types.PullPolicyAlways ||
				n.policy == types.PullPolicyRefresh && time.Since(tagged) > n.refresh
		}
		switch {
		case pull:
			pulls = append(pulls, n)
		case ok:
		case n.built:
			return fmt.Errorf("service %q is to be built from source, and its image %s is not on this host: releases carry images, not sources", n.service, n.image)
		default:
			return fmt.Errorf("image %s of service %q is not on this host, and its pull_policy forbids to pull it", n.image, n.service)
		}
	}
	if len(pulls) > 0 {
		r.emit(task.PhasePulling, fmt.Sprintf("pulling %s", count(len(pulls), "image")))
	}
	// Each pull goes on when another fails: all that is wrong is said at once.
	var group errgroup.Group
	group.SetLimit(pullsAtOnce)
	failed := make([]error, len(pulls))
	for i, n := range pulls {
		group.Go(func() error {
			err := r.engine.pull(ctx, p, n)
			switch {
			case err == nil:
			case context.Cause(ctx) != nil:
				failed[i] = context.Cause(ctx)
			case lost(err) || r.engine.ping(ctx) != nil: // the engine's fault, not the registry's
				failed[i] = &gone{fmt.Errorf("pull image %s of service %q: %w", n.image, n.service, err)}
			case present[n.image+" "+n.platform]:
				note(r.out, "image %s could not be pulled; the one on this host is used: %s", n.image, oneLine(err.Error()))
			case n.built:
				failed[i] = fmt.Errorf("service %q is to be built from source, and its image %s can neither be found nor pulled: %s", n.service, n.image, oneLine(err.Error()))
			default:
				failed[i] = fmt.Errorf("pull image %s of service %q: %s", n.image, n.service, oneLine(err.Error()))
			}
			return nil
		})
	}
	_ = group.Wait() // errors are in failed
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if i := slices.IndexFunc(failed, lost); i >= 0 {
		return failed[i] // all of it again, when the engine is back
	}
	if err := joinLine(failed); err != nil {
		return err
	}
	for name, s := range p.Services {
		s.PullPolicy = types.PullPolicyNever
		p.Services[name] = s
	}
	return nil
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
func (e *engine) image(ctx context.Context, n need) (tagged time.Time, ok bool, err error) {
	info, err := e.api.ImageInspect(ctx, n.image)
	if errdefs.IsNotFound(err) {
		return tagged, false, nil
	}
	if err != nil {
		return tagged, false, fmt.Errorf("look for image %s: %w", n.image, err)
	}
	if n.platform != "" {
		want, err := platforms.Parse(n.platform)
		if err != nil {
			return tagged, false, fmt.Errorf("service %q: platform: %w", n.service, err)
		}
		if !platforms.NewMatcher(want).Match(specs.Platform{Architecture: info.Architecture, OS: info.Os, Variant: info.Variant}) {
			return tagged, false, nil
		}
	}
	return info.Metadata.LastTagTime, true, nil
}

// references returns which image each reference stood for when the containers in
// list were made, those apart that the task made in an attempt that died.
func (r *run) references(ctx context.Context, list []container.Summary) map[string]string {
	ids := map[string]string{}
	for _, c := range list { // the newest first
		if c.Labels[LabelTask] == string(r.job.TaskID) {
			continue
		}
		info, err := r.engine.api.ContainerInspect(ctx, c.ID)
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
func (e *engine) pull(ctx context.Context, p *types.Project, n need) error {
	one := types.ServiceConfig{Name: n.service, Image: n.image, Platform: n.platform, PullPolicy: types.PullPolicyAlways}
	err := e.compose.Pull(ctx, &types.Project{
		Name:        p.Name,
		Environment: p.Environment,
		Services:    types.Services{n.service: one},
	}, api.PullOptions{Quiet: true})
	if client.IsErrConnectionFailed(err) {
		return &gone{unreachable(e.api.DaemonHost(), err)}
	}
	return err
}

// count returns n with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
