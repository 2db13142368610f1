package helm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// publicCharts names a directory of charts, NAME/Chart.yaml with all their
// dependencies and the values NAME.values.yaml, which are not ours to keep in
// the repository: see `make help`.
const publicCharts = "WRKTALK_TEST_CHARTS"

// stepTemplate is added to each chart: what changes with a release, and what fails on
// demand.
const stepTemplate = `apiVersion: v1
kind: ConfigMap
metadata: {name: wrktalk-step}
data: {step: "{{ .Values.wrktalkStep }}"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: wrktalk-step}
spec:
  selector: {matchLabels: {app: wrktalk-step}}
  template:
    metadata:
      labels: {app: wrktalk-step, version: "{{ .Values.wrktalkStep }}"}
      annotations: {{ merge (dict "step" .Values.wrktalkStep) (.Values.wrktalkFail | default dict) | toJson }}
    spec: {containers: [{name: main, image: example.test/step}]}
`

// snapshot is what people see of a release.
type snapshot struct{ history, manifest, values, hooks, notes, objects string }

// TestPublicCharts takes real charts through an installation, an upgrade, a
// failure and a rollback, once with the agent and once with the standard
// program, one after the other in one namespace: many name cluster-wide objects.
func TestPublicCharts(t *testing.T) {
	dir := os.Getenv(publicCharts)
	if dir == "" {
		t.Skip(publicCharts + " is not set")
	}
	found, err := filepath.Glob(filepath.Join(dir, "*", "Chart.yaml"))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s holds no charts: %v", dir, err)
	}
	for _, file := range found {
		name := filepath.Base(filepath.Dir(file))
		t.Run(name, func(t *testing.T) {
			b := newFixture(t)
			base, err := os.ReadFile(filepath.Join(dir, name+".values.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			var releases []*protocol.Release
			for i, fail := range []string{"{}", "{}", fmt.Sprintf("{%s: %s}", testenv.FailAnnotation, testenv.FailCrash)} {
				version := fmt.Sprintf("%d.0.0", i+1)
				values := fmt.Sprintf("%swrktalkStep: %s\nwrktalkFail: %s\n", base, version, fail)
				releases = append(releases, b.public(filepath.Dir(file), version, values))
			}
			agent := b.byAgent(releases)
			b.helm("uninstall", releaseName, "--wait")
			b.kubectl("delete", "all,configmaps,secrets,serviceaccounts,roles,rolebindings", "--all") // what hooks left
			standard := b.byCLI(releases)
			b.helm("uninstall", releaseName, "--wait")
			for i, what := range []string{"install", "upgrade", "failure", "rollback"} {
				compare(t, what+": history", agent[i].history, standard[i].history)
				compare(t, what+": manifest", agent[i].manifest, standard[i].manifest)
				compare(t, what+": values", agent[i].values, standard[i].values)
				compare(t, what+": hooks", agent[i].hooks, standard[i].hooks)
				compare(t, what+": notes", agent[i].notes, standard[i].notes)
				compare(t, what+": objects", agent[i].objects, standard[i].objects)
			}
		})
	}
}

// public makes a release of the chart in dir, with what the test adds.
func (b *fixture) public(dir, version, values string) *protocol.Release {
	b.t.Helper()
	to := b.t.TempDir()
	payload := filepath.Join(to, "payload")
	if err := os.CopyFS(payload, os.DirFS(dir)); err != nil {
		b.t.Fatal(err)
	}
	rel := &protocol.Release{ArtifactID: version, Version: version, PayloadDir: payload, ValuesFile: filepath.Join(to, "values.yaml")}
	for path, text := range map[string]string{filepath.Join(payload, "templates/wrktalk-step.yaml"): stepTemplate, rel.ValuesFile: values} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	sum := sha256.Sum256([]byte(dir + values))
	rel.SHA256 = hex.EncodeToString(sum[:])
	return rel
}

func (b *fixture) byAgent(releases []*protocol.Release) (seen []snapshot) {
	b.t.Helper()
	b.up(releases[0], nil)
	seen = append(seen, b.snapshot())
	b.up(releases[1], releases[0])
	seen = append(seen, b.snapshot())
	res := b.expire(b.job(releases[2], releases[1]), "deployment/wrktalk-step", crashed)
	if res.Succeeded || !res.Restored || res.Serving != "2.0.0" {
		b.t.Fatalf("%+v", res)
	}
	seen = append(seen, b.snapshot())
	job := b.job(releases[0], releases[1])
	job.Kind, job.TaskID = task.KindRollback, "task-back"
	if res := b.run(job); !res.Succeeded {
		b.t.Fatalf("%+v", res)
	}
	return append(seen, b.snapshot())
}

func (b *fixture) byCLI(releases []*protocol.Release) (seen []snapshot) {
	b.t.Helper()
	args := func(r *protocol.Release, timeout string) []string {
		return []string{"upgrade", "--install", "--atomic", "--wait", "--timeout", timeout, releaseName, r.PayloadDir, "--values", r.ValuesFile, "--namespace", b.ns}
	}
	for _, r := range releases[:2] {
		b.helm(args(r, "10m")...)
		seen = append(seen, b.snapshot())
	}
	if out, err := b.k.Helm(args(releases[2], "45s")...); err == nil {
		b.t.Fatalf("the failing release came up: %s", out)
	}
	seen = append(seen, b.snapshot())
	b.helm("rollback", releaseName, "1", "--wait")
	return append(seen, b.snapshot())
}

// what differs from one run to the next, whoever makes it.
var fleeting = regexp.MustCompile(`(?m)(pod|replicaset\.apps|controllerrevision\.apps|endpointslice\.discovery\.k8s\.io|event)[^\n]*\n|job\.batch/[^\n]*\n`)

// random is what charts make up anew in each rendering.
var random = regexp.MustCompile(`(?m)^(\s*(checksum/\S+|\S*(password|token|key|secret|crt|cert|ca|salt)\S*|caBundle|rollme)"?:\s).*$`)

// madeUp is the name of a test pod with a random end.
var madeUp = regexp.MustCompile(`(name: \S+-test-)[a-z0-9]{5}\b`)

func (b *fixture) snapshot() snapshot {
	b.t.Helper()
	var history []string
	for _, r := range b.history() {
		history = append(history, fmt.Sprintf("%d %s %s", r.Revision, r.Status, r.Chart))
	}
	objects := b.kubectl("get", "all,configmaps,serviceaccounts,roles,rolebindings,ingresses,networkpolicies,poddisruptionbudgets", "--output", "name") + "\n"
	lines := strings.Split(fleeting.ReplaceAllString(objects, ""), "\n")
	slices.Sort(lines)
	get := func(what string) string {
		text := random.ReplaceAllString(b.helm("get", what, releaseName), "$1 *")
		return madeUp.ReplaceAllString(text, "$1*")
	}
	return snapshot{
		strings.Join(history, "\n"), get("manifest"), get("values"), get("hooks"), get("notes"), strings.Join(lines, "\n"),
	}
}

// compare shows the first line that differs.
func compare(t *testing.T, what, agent, standard string) {
	t.Helper()
	a, s := strings.Split(agent, "\n"), strings.Split(standard, "\n")
	for i := range max(len(a), len(s)) {
		line := func(l []string) string {
			if i < len(l) {
				return l[i]
			}
			return "(its end)"
		}
		if line(a) != line(s) {
			t.Errorf("%s: line %d is %q by the agent, %q by the standard program", what, i+1, line(a), line(s))
			return
		}
	}
}
