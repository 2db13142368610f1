package helm

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

func TestInstallThenUpgrade(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "greeting: hello\npassword: correct-horse-battery\n")
	res := b.up(one, nil)
	if res.HelmRevision != 1 {
		t.Errorf("revision %d", res.HelmRevision)
	}
	b.serves("1.0.0")
	if got := b.kubectl("get", "configmap", "config", "--output", "jsonpath={.data.greeting}"); got != "hello" {
		t.Errorf("the row's values did not win: %q", got)
	}
	if !strings.Contains(b.log, "app 1.0.0 greets hello") {
		t.Error("the notes are not in the log")
	}
	for _, phase := range []task.Phase{task.PhasePreflight, task.PhaseApplying, task.PhaseWaiting} {
		if !b.said(phase, "") {
			t.Errorf("no event %s", phase)
		}
	}
	if strings.Contains(b.log, "correct-horse") {
		t.Error("the log shows a password")
	}

	// No values: the chart's, not those of the revision before.
	two := b.release("2.0.0", files("2.0.0", nil), "")
	if res := b.up(two, one); res.HelmRevision != 2 {
		t.Errorf("revision %d", res.HelmRevision)
	}
	b.serves("2.0.0")
	if got := b.kubectl("get", "configmap", "config", "--output", "jsonpath={.data.greeting}"); got != "from the chart" {
		t.Errorf("greeting %q", got)
	}

	// The standard CLI knows it all.
	if got := b.statuses(); got != "1 superseded, 2 deployed" {
		t.Errorf("history: %s", got)
	}
	if out := b.helm("list"); !strings.Contains(out, "app-2.0.0") || !strings.Contains(out, "deployed") {
		t.Errorf("list: %s", out)
	}
	if out := b.helm("get", "values", releaseName, "--revision", "1"); !strings.Contains(out, "greeting: hello") {
		t.Errorf("get values: %s", out)
	}
	if out := b.helm("get", "manifest", releaseName); !strings.Contains(out, "example.test/web:2.0.0") {
		t.Errorf("get manifest: %s", out)
	}
	if out := b.helm("get", "notes", releaseName); !strings.Contains(out, "app 2.0.0 greets") {
		t.Errorf("get notes: %s", out)
	}
	b.helm("rollback", releaseName, "1", "--wait")
	b.serves("1.0.0")
	// And we go on where it stopped.
	if res := b.up(two, one); res.HelmRevision != 4 {
		t.Errorf("revision %d", res.HelmRevision)
	}
	b.serves("2.0.0")
	b.helm("uninstall", releaseName)
	b.nothing()
}

// TestSameAsTheCLI installs and upgrades one chart with both, and compares what
// they record.
func TestSameAsTheCLI(t *testing.T) {
	t.Parallel()
	ours, theirs := newFixture(t), newFixture(t)
	for i, version := range []string{"1.0.0", "2.0.0"} {
		rel := ours.release(version, files(version, subcharts()), "greeting: hello\nport: 8080\nbig: 12345678\n")
		ours.up(rel, nil)
		theirs.helm("upgrade", "--install", "--atomic", "--wait", releaseName, rel.PayloadDir, "-f", rel.ValuesFile)
		for _, what := range [][]string{
			{"get", "manifest", releaseName},
			{"get", "values", releaseName, "--all"},
			{"get", "values", releaseName},
			{"get", "hooks", releaseName},
			{"get", "notes", releaseName},
		} {
			a := strings.ReplaceAll(ours.helm(what...), ours.ns, "NS")
			c := strings.ReplaceAll(theirs.helm(what...), theirs.ns, "NS")
			if a != c {
				t.Errorf("%d %v differ:\n%s\n---- helm:\n%s", i, what, a, c)
			}
		}
	}
	if a, c := ours.statuses(), theirs.statuses(); a != c {
		t.Errorf("history: %s; helm: %s", a, c)
	}
}

// subcharts adds a vendored dependency, as a directory, with a condition.
func subcharts() map[string]string {
	return map[string]string{
		"Chart.yaml": "apiVersion: v2\nname: app\nversion: 3.0.0\nkubeVersion: '>=1.20.0-0'\ndependencies:\n" +
			"- {name: db, version: 0.1.0, condition: db.enabled}\n- {name: spare, version: 0.1.0, condition: spare.enabled}\n",
		"charts/db/Chart.yaml":  "apiVersion: v2\nname: db\nversion: 0.1.0\n",
		"charts/db/values.yaml": "size: 1\n",
		"charts/db/templates/config.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: db}\ndata: {size: {{ .Values.size | quote }}, " +
			"helm: {{ .Capabilities.HelmVersion.Version | quote }}, kubernetes: {{ .Capabilities.KubeVersion.Version | quote }}, " +
			"apis: {{ .Capabilities.APIVersions.Has \"apps/v1/Deployment\" | quote }}, old: {{ semverCompare \"<3.22.0\" .Capabilities.HelmVersion.Version | quote }}}\n",
		"charts/spare/Chart.yaml":         "apiVersion: v2\nname: spare\nversion: 0.1.0\n",
		"charts/spare/values.yaml":        "enabled: false\n",
		"charts/spare/templates/bad.yaml": "{{ fail \"must not be rendered\" }}",
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	rel := b.release("1.0.0", files("1.0.0", nil), "")
	rel.Version = "2026 release (№ 7)"
	job := b.job(rel, nil)
	if res := b.run(job); !res.Succeeded || res.Serving != rel.Version {
		t.Fatalf("%+v", res)
	}
	var secrets struct {
		Items []struct {
			Metadata struct{ Labels map[string]string }
		}
	}
	if err := json.Unmarshal([]byte(b.kubectl("get", "secrets", "--selector", "owner=helm", "--output", "json")), &secrets); err != nil || len(secrets.Items) != 1 {
		t.Fatal(err, secrets)
	}
	labels := secrets.Items[0].Metadata.Labels
	for name, want := range map[string]string{
		labelTask: labelValue(string(job.TaskID)), labelToken: labelValue(string(job.Token)), labelArtifact: rel.ArtifactID,
		labelVersion: labelValue(rel.Version), labelDigest: rel.SHA256[:63], labelAction: actionDeploy,
		"status": "deployed", "name": releaseName, "version": "1",
	} {
		if labels[name] != want {
			t.Errorf("label %s is %q, not %q", name, labels[name], want)
		}
	}
}

func TestHistoryLimit(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for i := range 4 {
		version := fmt.Sprintf("1.0.%d", i)
		job := b.job(b.release(version, files(version, nil), ""), nil)
		job.Helm.HistoryMax = 2
		if res := b.run(job); !res.Succeeded || res.HelmRevision != i+1 {
			t.Fatalf("%+v", res)
		}
	}
	if got := b.statuses(); got != "3 superseded, 4 deployed" {
		t.Errorf("history: %s", got)
	}
}

// TestNamespaceIsCreated deploys into a namespace that does not exist.
func TestNamespaceIsCreated(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.ns += "-new"
	b.up(b.release("1.0.0", files("1.0.0", nil), ""), nil)
	b.serves("1.0.0")
	if _, err := b.k.Kubectl("delete", "namespace", b.ns, "--wait=false"); err != nil {
		t.Error(err)
	}
}

func TestLayouts(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for version, dir := range map[string]string{"1.0.0": "chart/", "2.0.0": "wrktalk-1.0/"} {
		moved := map[string]string{"README.md": "not a chart"}
		for name, text := range files(version, nil) {
			moved[dir+name] = text
		}
		b.up(b.release(version, moved, ""), nil)
		b.serves(version)
	}
}

// TestCRDs installs a chart that brings a kind and an object of it.
func TestCRDs(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	group := strings.ReplaceAll(b.ns, "-", "") + ".test"
	more := map[string]string{
		"crds/thing.yaml":      customKind(group),
		"templates/thing.yaml": fmt.Sprintf("apiVersion: %s/v1\nkind: Thing\nmetadata: {name: one}\n", group),
	}
	t.Cleanup(func() {
		if _, err := b.k.Kubectl("delete", "customresourcedefinition", "things."+group, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	b.up(b.release("1.0.0", files("1.0.0", more), ""), nil)
	b.kubectl("get", "things."+group, "one")
	b.up(b.release("2.0.0", files("2.0.0", more), ""), nil)
	b.serves("2.0.0")
}

// customKind defines kind Thing, whose objects may hold anything.
func customKind(group string) string {
	return fmt.Sprintf(`apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.%[1]s}
spec:
  group: %[1]s
  scope: Namespaced
  names: {kind: Thing, plural: things, singular: thing}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`, group)
}

// hook returns a Job that is a hook.
func hook(name, event, annotations string) string {
	return fmt.Sprintf(`apiVersion: batch/v1
kind: Job
metadata: {name: %s, annotations: {helm.sh/hook: %q}}
spec:
  backoffLimit: 0
  template:
    metadata: {annotations: {%s}}
    spec: {restartPolicy: Never, containers: [{name: main, image: example.test/hook}]}
`, name, event, annotations)
}

func TestHooksRun(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	hooks := map[string]string{
		"templates/before.yaml": hook("before", "pre-install,pre-upgrade", ""),
		"templates/after.yaml":  hook("after", "post-install", ""),
	}
	b.up(b.release("1.0.0", files("1.0.0", hooks), ""), nil)
	for _, name := range []string{"before", "after"} {
		if got := b.kubectl("get", "job", name, "--output", "jsonpath={.status.succeeded}"); got != "1" {
			t.Errorf("hook %s: %q", name, got)
		}
		if !b.said(task.PhaseApplying, "running hook job/"+name) {
			t.Errorf("no event of hook %s", name)
		}
	}
	b.up(b.release("2.0.0", files("2.0.0", hooks), ""), nil)
}
