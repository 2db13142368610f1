package compose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/cli/cli/config"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	buildkit "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/tonistiigi/fsutil"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// labelBuilt is on every image that was built for a release. It holds the project's
// name, so that it is the same for each release: an image of unchanged sources stays
// the image that it was, and its containers stay.
const labelBuilt = "com.wrktalk.agent.built"

// builtTag returns the reference under which the image that a release has built for
// a service stays on the host: a rollback finds it by that, whatever the name that
// the service uses stands for meanwhile.
func builtTag(project, service, bundle string) string {
	return api.GetImageNameOrDefault(types.ServiceConfig{Name: service}, project) + ":" + bundle
}

// checkBuilds names what the sources of a release may not ask for: what lies outside
// of the bundle at dir, what needs more of the host than its builder, and what
// Docker's own builder cannot do.
func checkBuilds(p *types.Project, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the bundle: %w", err)
	}
	defer root.Close()
	for _, name := range p.ServiceNames() {
		if build := p.Services[name].Build; build != nil {
			if err := checkBuild(p, root, dir, *build); err != nil {
				return fmt.Errorf("service %q: build: %w", name, err)
			}
		}
	}
	return nil
}

func checkBuild(p *types.Project, root *os.Root, dir string, build types.BuildConfig) error {
	switch {
	case len(build.SSH) > 0:
		return errors.New("ssh is not supported, since the agent has no keys: put the sources into the release")
	case build.Privileged || len(build.Entitlements) > 0:
		return errors.New("privileged and entitlements are not supported: build the image beforehand")
	case len(build.Platforms) > 1:
		return errors.New("an image for several platforms cannot be kept by Docker Engine: name one platform")
	}
	inside := func(what, path string) error {
		rel, err := filepath.Rel(dir, path)
		if isRemote(path) {
			return fmt.Errorf("%s %q is a remote resource, which is not followed: put the sources into the release", what, path)
		}
		if err != nil || !filepath.IsLocal(rel) {
			return fmt.Errorf("%s %q is outside of the release: put the sources into it", what, path)
		}
		if _, err := root.Stat(rel); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: the release has no %s", what, rel)
		} else if err != nil {
			return fmt.Errorf("%s %q leads outside of the release, or cannot be read: %w", what, rel, err)
		}
		return nil
	}
	if err := inside("context", build.Context); err != nil {
		return err
	}
	if build.DockerfileInline == "" {
		if err := inside("dockerfile", dockerfile(build)); err != nil {
			return err
		}
	}
	for name, path := range build.AdditionalContexts {
		if strings.HasPrefix(path, types.ServicePrefix) || strings.HasPrefix(path, "docker-image://") {
			continue
		}
		if err := inside("additional_contexts."+name, path); err != nil {
			return err
		}
	}
	for _, ref := range build.Secrets {
		object, ok := p.Secrets[ref.Source]
		switch {
		case !ok || bool(object.External):
			return fmt.Errorf("secret %q is not defined by the release", ref.Source)
		case object.File != "":
			if err := inside("secret "+ref.Source, object.File); err != nil {
				return err
			}
		case object.Environment != "":
			if _, ok := p.Environment[object.Environment]; !ok {
				return fmt.Errorf("secret %q: the release's env has no variable %s", ref.Source, object.Environment)
			}
		}
	}
	return nil
}

func isRemote(path string) bool {
	return strings.Contains(path, "://") || strings.HasPrefix(path, "git@") || strings.HasPrefix(path, "github.com/")
}

// dockerfile returns the path of a build's Dockerfile.
func dockerfile(build types.BuildConfig) string {
	name := build.Dockerfile
	if name == "" {
		name = "Dockerfile"
	}
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(build.Context, name)
}

// building is the images of a release that are built from source.
type building struct {
	backend *backend
	p       *prepared
	order   []string // services to build, what others build upon first
}

// build builds the images of the services, in an order that lets one be the context
// of another one. What it says goes to the run's log.
func (b *backend) build(ctx context.Context, p *prepared, services []string) error {
	g := &building{backend: b, p: p}
	for _, name := range services {
		g.add(name, services)
	}
	b.report.Event(task.PhasePulling, "building %s", deploy.Count(len(g.order), "image"))
	client, err := b.engine.builder(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	for _, name := range g.order {
		err := g.one(ctx, client, name)
		switch {
		case err == nil:
		case context.Cause(ctx) != nil:
			return context.Cause(ctx)
		case isConnError(err) || b.engine.ping(ctx) != nil:
			return &connError{fmt.Errorf("build the image of service %q: %w", name, err)}
		default:
			return fmt.Errorf("build the image of service %q: %s", name, deploy.OneLine(err.Error()))
		}
	}
	return nil
}

// add puts a service of those that are to be built into the order, once.
func (g *building) add(name string, among []string) {
	if slices.Contains(g.order, name) || !slices.Contains(among, name) {
		return
	}
	among = slices.DeleteFunc(slices.Clone(among), func(n string) bool { return n == name }) // no circle
	for _, path := range g.p.project.Services[name].Build.AdditionalContexts {
		if upon, ok := strings.CutPrefix(path, types.ServicePrefix); ok {
			g.add(upon, among)
		}
	}
	g.order = append(g.order, name)
}

// builder returns a client of the builder that is part of the engine.
func (e *engine) builder(ctx context.Context) (*buildkit.Client, error) {
	return buildkit.New(ctx, "",
		buildkit.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return e.api.DialHijack(ctx, "/grpc", "h2c", nil)
		}),
		buildkit.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			return e.api.DialHijack(ctx, "/session", proto, meta)
		}))
}

// one builds the image of one service.
func (g *building) one(ctx context.Context, client *buildkit.Client, name string) error {
	s := g.p.project.Services[name]
	opt, cleanup, err := g.options(s)
	if err != nil {
		return err
	}
	defer cleanup()
	log := g.backend.report.Log()
	fmt.Fprintf(log, "building the image of service %s\n", name)
	display, err := progressui.NewDisplay(log, progressui.PlainMode)
	if err != nil {
		return err
	}
	status := make(chan *buildkit.SolveStatus)
	var shown sync.WaitGroup
	shown.Go(func() {
		// To the end of what is said, also when the time is up.
		_, _ = display.UpdateFrom(context.WithoutCancel(ctx), status)
	})
	_, err = client.Solve(ctx, nil, opt, status)
	shown.Wait()
	return err
}

// options returns what the builder is told for a service, and what removes the
// files that were made for it.
func (g *building) options(s types.ServiceConfig) (opt buildkit.SolveOpt, cleanup func(), err error) {
	build, project := s.Build, g.p.project
	cleanup = func() {}
	dockerfileDir, name := filepath.Split(dockerfile(*build))
	if build.DockerfileInline != "" {
		if dockerfileDir, err = os.MkdirTemp("", "wrktalk-build-"); err != nil {
			return opt, cleanup, err
		}
		cleanup = func() { _ = os.RemoveAll(dockerfileDir) } // it holds no secret
		name = "Dockerfile"
		if err := os.WriteFile(filepath.Join(dockerfileDir, name), []byte(build.DockerfileInline), 0o600); err != nil {
			return opt, cleanup, err
		}
	}
	tags := append([]string{builtTag(project.Name, s.Name, g.p.bundle)}, build.Tags...)
	attrs := map[string]string{
		"filename":            name,
		"target":              build.Target,
		"image-resolve-mode":  "local",
		"force-network-mode":  build.Network,
		"label:" + labelBuilt: project.Name,
		// The same as the CLI sets.
		"label:" + api.ProjectLabel: project.Name, "label:" + api.ServiceLabel: s.Name, "label:" + api.VersionLabel: api.ComposeVersion,
	}
	if build.Network == "default" || build.Network == "bridge" {
		delete(attrs, "force-network-mode")
	}
	if build.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	if build.NoCache {
		attrs["no-cache"] = ""
	}
	if platform := s.Platform; len(build.Platforms) == 1 || platform != "" {
		if len(build.Platforms) == 1 {
			platform = build.Platforms[0]
		}
		attrs["platform"] = platform
	}
	if len(build.ExtraHosts) > 0 {
		attrs["add-hosts"] = strings.Join(build.ExtraHosts.AsList("="), ",")
	}
	if build.ShmSize > 0 {
		attrs["shm-size"] = strconv.FormatInt(int64(build.ShmSize), 10)
	}
	for k, v := range build.Labels {
		attrs["label:"+k] = v
	}
	for k, v := range build.Args.Resolve(project.Environment.Resolve) {
		if v != nil {
			attrs["build-arg:"+k] = *v
		}
	}
	mounts := map[string]string{"context": build.Context, "dockerfile": dockerfileDir}
	for k, path := range build.AdditionalContexts {
		service, isService := strings.CutPrefix(path, types.ServicePrefix)
		switch {
		case isService:
			attrs["context:"+k] = "docker-image://" + g.imageOf(service)
		case isRemote(path):
			attrs["context:"+k] = path
		default:
			mounts["additional-"+k] = path
			attrs["context:"+k] = "local:additional-" + k
		}
	}
	opt = buildkit.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: map[string]fsutil.FS{},
		Exports: []buildkit.ExportEntry{{Type: "moby", Attrs: map[string]string{"name": strings.Join(tags, ",")}}},
		Session: []session.Attachable{
			authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{ConfigFile: config.LoadDefaultConfigFile(g.backend.report.Log())}),
			secretsprovider.NewSecretProvider(buildSecrets{project, g.p.secrets, build.Secrets}),
		},
	}
	for k, path := range mounts {
		if opt.LocalMounts[k], err = fsutil.NewFS(path); err != nil {
			return opt, cleanup, err
		}
	}
	return opt, cleanup, nil
}

// imageOf returns the image of a service that another one is built upon.
func (g *building) imageOf(service string) string {
	s := g.p.project.Services[service]
	if s.Build != nil && slices.Contains(g.order, service) {
		return builtTag(g.p.project.Name, service, g.p.bundle)
	}
	return api.GetImageNameOrDefault(s, g.p.project.Name)
}

// buildSecrets hands the secrets of a build to the builder, which keeps none of
// them.
type buildSecrets struct {
	project *types.Project
	files   types.Secrets // of project, with the files of the bundle
	refs    []types.ServiceSecretConfig
}

func (b buildSecrets) GetSecret(_ context.Context, id string) ([]byte, error) {
	for _, ref := range b.refs {
		name := ref.Source
		if ref.Target != "" {
			name = ref.Target
		}
		if name != id {
			continue
		}
		object := b.files[ref.Source]
		switch {
		case object.File != "":
			return os.ReadFile(object.File)
		case object.Environment != "":
			return []byte(b.project.Environment[object.Environment]), nil
		default:
			return []byte(object.Content), nil
		}
	}
	return nil, fmt.Errorf("secret %s: %w", id, secrets.ErrNotFound)
}

// isBuiltImage reports whether an image was built for an earlier release of the
// service.
func isBuiltImage(info image.InspectResponse, project, service string) bool {
	tag := builtTag(project, service, "")
	return slices.ContainsFunc(info.RepoTags, func(ref string) bool { return strings.HasPrefix(ref, tag) && !strings.HasSuffix(ref, ":latest") })
}

// nameBuilt lets the names that the services of p use stand for the images that the
// release has built.
func (b *backend) nameBuilt(ctx context.Context, p *prepared) error {
	for name, s := range p.project.Services {
		if s.Build == nil {
			continue
		}
		ref, own := api.GetImageNameOrDefault(s, p.project.Name), builtTag(p.project.Name, name, p.bundle)
		built, found, err := b.engine.inspectImage(ctx, own)
		if err != nil {
			return err
		}
		if !found {
			continue // its image was not built here
		}
		now, found, err := b.engine.inspectImage(ctx, ref)
		if err != nil {
			return err
		}
		if found && now.ID == built.ID {
			continue
		}
		if err := b.engine.api.ImageTag(ctx, own, ref); err != nil {
			return fmt.Errorf("name image %s %s: %w", own, ref, err)
		}
		if b.renamed == nil {
			b.renamed = map[string]string{}
		}
		if _, ok := b.renamed[ref]; !ok {
			b.renamed[ref] = now.ID
		}
	}
	return nil
}

// unname undoes nameBuilt, for a release that is refused after all.
func (b *backend) unname(ctx context.Context) {
	for ref, id := range b.renamed {
		var err error
		if id == "" {
			_, err = b.engine.api.ImageRemove(ctx, ref, image.RemoveOptions{})
		} else {
			err = b.engine.api.ImageTag(ctx, id, ref)
		}
		if err != nil {
			b.report.Note("image %s keeps the name that it got for the refused release: %s", ref, b.report.Line(err.Error()))
		}
	}
	b.renamed = nil
}

// removeBuilt removes the images that releases have built whose bundles are not kept
// any more. What a container uses stays.
func (b *backend) removeBuilt(ctx context.Context) {
	list, err := b.engine.api.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("label", labelBuilt+"="+b.job.Compose.Project))})
	if err != nil {
		b.report.Note("images of old releases stay for now: %s", b.report.Line(err.Error()))
		return
	}
	for _, info := range list {
		for _, ref := range info.RepoTags {
			service := info.Labels[api.ServiceLabel]
			bundle, ok := strings.CutPrefix(ref, builtTag(b.job.Compose.Project, service, ""))
			if !ok || bundle == "latest" || b.store.has(bundle) {
				continue
			}
			if _, err := b.engine.api.ImageRemove(ctx, ref, image.RemoveOptions{}); err != nil {
				b.report.Note("the image %s of an old release stays: %s", ref, b.report.Line(err.Error()))
			}
		}
	}
}
