package helm

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"
	helmtime "helm.sh/helm/v3/pkg/time"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/yaml"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// maxManifest bounds a rendered chart, in bytes. It could not be recorded anyway,
// unless it compresses suspiciously well.
const maxManifest = 32 << 20

// rendered is a release as it would be recorded, and its resources.
type rendered struct {
	release  *release.Release
	targets  kube.ResourceList // those of kinds the API knows
	hooks    kube.ResourceList
	ownKinds []crd // kinds of targets and hooks that an installation brings first
}

// capabilities asks the API what it is and can.
func (c *cluster) capabilities() (*chartutil.Capabilities, error) {
	c.getter.discovery.Invalidate()
	v, err := c.getter.discovery.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("read the version of the kubernetes API: %s", deploy.OneLine(err.Error()))
	}
	versions, err := action.GetVersionSet(c.getter.discovery)
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) { // one group less is no harm
		return nil, fmt.Errorf("read what the kubernetes API offers: %s", deploy.OneLine(err.Error()))
	}
	return &chartutil.Capabilities{
		APIVersions: versions,
		KubeVersion: chartutil.KubeVersion{Version: v.GitVersion, Major: v.Major, Minor: v.Minor},
		HelmVersion: chartutil.DefaultCapabilities.HelmVersion,
	}, nil
}

// render renders ch as Helm would, and checks all that Helm would find out only
// after it had begun. Helm's own dry run is not used: it refuses while an
// operation is pending, and cannot cope with kinds that the chart brings.
// It changes ch and values; options say for which revision.
func (c *cluster) render(ch *chart.Chart, values map[string]any, options chartutil.ReleaseOptions) (*rendered, error) {
	caps, err := c.capabilities()
	if err != nil {
		return nil, err
	}
	if want := ch.Metadata.KubeVersion; want != "" && !chartutil.IsCompatibleRange(want, caps.KubeVersion.String()) {
		return nil, fmt.Errorf("chart %s requires kubernetes %s, the cluster has %s", ch.Name(), want, caps.KubeVersion.Version)
	}
	if err := chartutil.ProcessDependenciesWithMerge(ch, values); err != nil {
		return nil, fmt.Errorf("work out the chart's dependencies: %s", deploy.OneLine(err.Error()))
	}
	if err := checkSchemas(ch); err != nil {
		return nil, err
	}
	top, err := chartutil.ToRenderValuesWithSchemaValidation(ch, values, options, caps, false)
	if err != nil {
		return nil, errors.New(deploy.OneLine(err.Error()))
	}
	files, err := engine.New(c.config).Render(ch, top)
	if err != nil {
		return nil, fmt.Errorf("render the chart: %s", deploy.OneLine(err.Error()))
	}
	var notes string
	for name, text := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			if name == path.Join(ch.Name(), "templates", "NOTES.txt") {
				notes = text
			}
			delete(files, name)
		}
	}
	hooks, manifests, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, fmt.Errorf("read the rendered chart: %s", deploy.OneLine(err.Error()))
	}
	out := &rendered{release: &release.Release{
		Name: options.Name, Namespace: options.Namespace, Version: options.Revision,
		Chart: ch, Config: values, Hooks: hooks,
		Info: &release.Info{FirstDeployed: helmtime.Now(), LastDeployed: helmtime.Now(), Status: release.StatusDeployed, Notes: notes},
	}}
	var manifest strings.Builder
	for _, m := range manifests {
		fmt.Fprintf(&manifest, "---\n# Source: %s\n%s\n", m.Name, m.Content)
	}
	if manifest.Len() > maxManifest {
		return nil, fmt.Errorf("the rendered chart has %d bytes, more than the %d allowed", manifest.Len(), maxManifest)
	}
	out.release.Manifest = manifest.String()
	return out, nil
}

// build resolves the objects of r; strict checks them against the API's schemas.
// Kinds of the chart's own CRDs are left out when it is to be installed: Helm
// installs those first, and only then.
func (c *cluster) build(client kube.Interface, r *rendered, strict, install bool) error {
	var brings []crd
	if install {
		brings = chartCRDs(r.release.Chart)
	}
	for _, doc := range sortedDocs(r.release.Manifest) {
		list, err := c.buildOne(client, r, doc, brings, strict)
		if err != nil {
			return fmt.Errorf("%s: %s", source(doc), deploy.OneLine(err.Error()))
		}
		r.targets = append(r.targets, list...)
	}
	for _, h := range r.release.Hooks {
		if !slices.ContainsFunc(h.Events, func(e release.HookEvent) bool { return e != release.HookTest }) {
			continue // nobody tests here
		}
		list, err := c.buildOne(client, r, h.Manifest, brings, strict)
		if unknownKind(err) {
			continue // a template may bring it: Helm looks when the hook's time has come
		}
		if err != nil {
			return fmt.Errorf("hook %s: %s", h.Path, deploy.OneLine(err.Error()))
		}
		r.hooks = append(r.hooks, list...)
	}
	return nil
}

// unknownKind reports whether err is that the API has no such kind. Some of these
// errors have no type.
func unknownKind(err error) bool {
	return err != nil && (meta.IsNoMatchError(err) || strings.Contains(err.Error(), "no matches for kind"))
}

// sortedDocs splits a manifest and keeps its order.
func sortedDocs(manifest string) []string {
	split := releaseutil.SplitManifests(manifest)
	docs := make([]string, len(split))
	for name, doc := range split {
		var i int
		if _, err := fmt.Sscanf(name, "manifest-%d", &i); err == nil && i < len(docs) {
			docs[i] = doc
		}
	}
	return docs
}

// source returns the template a rendered document came from.
func source(doc string) string {
	for line := range strings.Lines(doc) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "# Source: "); ok {
			return "template " + name
		}
	}
	return "a template"
}

func (c *cluster) buildOne(client kube.Interface, r *rendered, doc string, brings []crd, strict bool) (kube.ResourceList, error) {
	if o, ok := objectOf(doc, ""); ok {
		mapper, err := c.getter.ToRESTMapper()
		if err != nil {
			return nil, err
		}
		for _, crd := range brings {
			if crd.group == o.kind.Group && crd.kind == o.kind.Kind {
				if _, err := mapper.RESTMapping(o.kind.GroupKind(), o.kind.Version); err != nil {
					r.ownKinds = append(r.ownKinds, crd)
					return nil, nil // it cannot be checked yet
				}
			}
		}
	}
	return client.Build(bytes.NewBufferString(doc), strict)
}

// crdsMissing reports whether the chart brings kinds, in its crds directory, that
// the API does not have.
func (c *cluster) crdsMissing(r *rendered) (bool, error) {
	mapper, err := c.getter.ToRESTMapper()
	if err != nil {
		return false, err
	}
	for _, crd := range chartCRDs(r.release.Chart) {
		_, err := mapper.RESTMapping(schema.GroupKind{Group: crd.group, Kind: crd.kind})
		if unknownKind(err) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("look for kind %s of the chart: %s", crd.kind, deploy.OneLine(err.Error()))
		}
	}
	return false, nil
}

// crd is a kind that a chart's crds directory brings.
type crd struct{ group, kind, plural, scope string }

// chartCRDs returns the kinds that ch brings.
func chartCRDs(ch *chart.Chart) []crd {
	var found []crd
	for _, obj := range ch.CRDObjects() {
		for _, doc := range sortedDocs(string(obj.File.Data)) {
			var d struct {
				Metadata struct{ Name string }
				Spec     struct {
					Group string
					Scope string
					Names struct{ Kind, Plural string }
				}
			}
			if yaml.Unmarshal([]byte(doc), &d) == nil && d.Metadata.Name != "" {
				found = append(found, crd{d.Spec.Group, d.Spec.Names.Kind, d.Spec.Names.Plural, d.Spec.Scope})
			}
		}
	}
	return found
}
