package helm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == StepArg {
		os.Exit(Step())
	}
	testenv.Main(m)
}

const releaseName = "app"

// limit is how long anything may take before it is taken never to end.
const limit = 10 * time.Minute

// notUp is how it is said that a release was not up within the limit.
const notUp = "was not up after 10m0s"

// fixture is one release in a namespace of its own on the real API.
type fixture struct {
	t          *testing.T
	k          *testenv.Kubernetes
	ns         string
	kubeconfig string
	approve    func(context.Context) error // what the runner does, besides counting
	onEvent    func(task.Event)
	approvals  int
	events     []task.Event
	log        string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	k := testenv.SharedKubernetes(t)
	return &fixture{t: t, k: k, ns: k.Namespace(t), kubeconfig: k.AdminKubeconfig}
}

// files are a chart: a Deployment "web" whose pods carry annotations, a Secret
// and a ConfigMap with the value of "greeting".
func files(version string, more map[string]string) map[string]string {
	f := map[string]string{
		"Chart.yaml":  "apiVersion: v2\nname: app\nversion: " + version + "\n",
		"values.yaml": "greeting: from the chart\nreplicas: 1\npod: {}\npassword: default-password\n",
		"templates/web.yaml": `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web, version: {{ .Chart.Version | quote }}}
      annotations: {{ merge (dict "version" .Chart.Version) .Values.pod | toJson }}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: example.test/web:{{ .Chart.Version }}}]
`,
		"templates/config.yaml": `apiVersion: v1
kind: ConfigMap
metadata: {name: config}
data: {greeting: {{ .Values.greeting | quote }}, version: {{ .Chart.Version | quote }}, name: {{ .Release.Name }}}
`,
		"templates/secret.yaml": `apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {db-password: {{ .Values.password | quote }}}
`,
		"templates/NOTES.txt": "{{ .Chart.Name }} {{ .Chart.Version }} greets {{ .Values.greeting }} with {{ .Values.password }}",
	}
	maps.Copy(f, more)
	return f
}

// release writes a release's payload and values to a staging directory.
func (b *fixture) release(version string, files map[string]string, values string) *protocol.Release {
	return newRelease(b.t, version, files, values)
}

func newRelease(t *testing.T, version string, files map[string]string, values string) *protocol.Release {
	t.Helper()
	dir := t.TempDir()
	rel := &protocol.Release{ArtifactID: "artifact-" + version, Version: version, PayloadDir: filepath.Join(dir, "payload")}
	if err := os.Mkdir(rel.PayloadDir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprint(h, version, name, files[name])
		path := filepath.Join(rel.PayloadDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rel.SHA256 = hex.EncodeToString(h.Sum(nil))
	if values != "" {
		rel.ValuesFile = filepath.Join(dir, "values.yaml")
		if err := os.WriteFile(rel.ValuesFile, []byte(values), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return rel
}

// failing returns values that make the pods fail in a way of the test
// environment.
func failing(how string) string {
	return fmt.Sprintf("pod: {%s: %s}\n", testenv.FailAnnotation, how)
}

func (b *fixture) job(rel, prev *protocol.Release) protocol.Job {
	return protocol.Job{
		Schema: protocol.Schema, Action: protocol.ActionDeploy, Kind: task.KindDeploy,
		TaskID: task.ID("task-" + rel.Version), Token: task.Token("2026-11-23 13:39:15.5+00 " + rel.Version),
		Release: *rel, Previous: prev,
		Timeout: limit, RestoreTimeout: limit,
		Settings: protocol.Settings{Helm: &protocol.Helm{Namespace: b.ns, Release: releaseName, Kubeconfig: b.kubeconfig, HistoryMax: 10}},
	}
}

func (b *fixture) run(job protocol.Job) protocol.Result {
	b.t.Helper()
	return b.runContext(context.Background(), job)
}

func (b *fixture) runContext(ctx context.Context, job protocol.Job) protocol.Result {
	b.t.Helper()
	var out bytes.Buffer
	b.events, b.approvals = nil, 0
	report := deploy.NewReport(&out, func(e task.Event) {
		b.events = append(b.events, e)
		if b.onEvent != nil {
			b.onEvent(e)
		}
	})
	res := deploy.Run(ctx, job, report, func(ctx context.Context) error {
		b.approvals++
		if b.approve != nil {
			return b.approve(ctx)
		}
		return nil
	}, New)
	b.log = out.String()
	var said strings.Builder
	for _, e := range b.events {
		fmt.Fprintf(&said, "  %s: %s\n", e.Phase, e.Text)
	}
	b.t.Logf("%s %s: %+v\n%s%s", job.Action, job.Release.Version, res, said.String(), b.log)
	return res
}

// expire runs job and lets its time be up at the first event that has text, as
// soon as the pods of the version are what kubectl wait is asked for. A real
// limit would have to suit the slowest machine.
func (b *fixture) expire(job protocol.Job, text, pods string) protocol.Result {
	b.t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	before := b.onEvent
	defer func() { b.onEvent = before }()
	b.onEvent = func(e task.Event) {
		if before != nil {
			before(e)
		}
		if ctx.Err() != nil || !strings.Contains(e.Text, text) {
			return
		}
		if pods != "" {
			which := []string{"pods", "--selector", "version=" + job.Release.Version, "--timeout", limit.String()}
			b.kubectl(append([]string{"wait", "--for", "create"}, which...)...)
			b.kubectl(append([]string{"wait", "--for", pods}, which...)...)
		}
		cancel(deploy.ErrTimeout)
	}
	return b.runContext(ctx, job)
}

// notReady is what is said while the Deployment's pods are not ready.
const notReady = "deployment/web 0/1 ready"

// What failing pods are awaited by.
const (
	crashed = `jsonpath={.status.containerStatuses[0].state.waiting.reason}=CrashLoopBackOff`
	noImage = `jsonpath={.status.containerStatuses[0].state.waiting.reason}=ImagePullBackOff`
	started = `jsonpath={.status.phase}=Running`
)

// enough is a limit that must be reached for real: it holds a child's start and
// a few requests on a slow machine.
func enough() time.Duration {
	if raceDetector {
		return 2 * time.Minute
	}
	return 20 * time.Second
}

// up deploys rel over prev and must succeed.
func (b *fixture) up(rel, prev *protocol.Release) protocol.Result {
	b.t.Helper()
	res := b.run(b.job(rel, prev))
	if !res.Succeeded || !res.Changed || res.Error != "" || res.Serving != rel.Version || b.approvals != 1 {
		b.t.Fatalf("deploy %s: %+v, %d approvals", rel.Version, res, b.approvals)
	}
	return res
}

// helm runs the standard CLI.
func (b *fixture) helm(args ...string) string {
	b.t.Helper()
	out, err := b.k.Helm(append(args, "--namespace", b.ns)...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// revision is a line of `helm history`.
type revision struct {
	Revision    int
	Status      string
	Chart       string
	Description string
}

func (b *fixture) history() []revision {
	b.t.Helper()
	var h []revision
	if err := json.Unmarshal([]byte(b.helm("history", releaseName, "--output", "json")), &h); err != nil {
		b.t.Fatal(err)
	}
	return h
}

// statuses returns the history as "1 superseded, 2 deployed".
func (b *fixture) statuses() string {
	b.t.Helper()
	var texts []string
	for _, r := range b.history() {
		texts = append(texts, fmt.Sprintf("%d %s", r.Revision, r.Status))
	}
	return strings.Join(texts, ", ")
}

func (b *fixture) kubectl(args ...string) string {
	b.t.Helper()
	out, err := b.k.Kubectl(append(args, "--namespace", b.ns)...)
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// serves checks that the objects are those of version, and ready. What the
// Deployment says of itself may come a moment later.
func (b *fixture) serves(version string) {
	b.t.Helper()
	if got := b.kubectl("get", "configmap", "config", "--output", "jsonpath={.data.version}"); got != version {
		b.t.Errorf("the ConfigMap is of %q, not %q", got, version)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), limit)
	defer cancel()
	want := testenv.Served{Image: "example.test/web:" + version, Version: version, Updated: 1, Ready: 1}
	if err := b.k.AwaitServed(ctx, b.ns, "web", want); err != nil {
		b.t.Errorf("release %s does not serve: %v", version, err)
	}
}

// nothing checks that the namespace holds nothing of the release.
func (b *fixture) nothing() {
	b.t.Helper()
	got := b.kubectl("get", "deployments,configmaps,secrets,jobs,services,persistentvolumeclaims", "--output", "name")
	if got = strings.TrimSpace(strings.ReplaceAll(got, "configmap/kube-root-ca.crt", "")); got != "" {
		b.t.Errorf("left behind: %s", got)
	}
}

// failsWith checks a failed result's error for each text.
func failsWith(t *testing.T, res protocol.Result, texts ...string) {
	t.Helper()
	if res.Succeeded {
		t.Fatalf("succeeded: %+v", res)
	}
	if strings.ContainsAny(res.Error+res.Message, "\n\r") {
		t.Errorf("the error is not one line: %q", res.Error)
	}
	for _, text := range texts {
		if !strings.Contains(res.Error, text) {
			t.Errorf("error %q does not mention %q", res.Error, text)
		}
	}
}

// refusedWith checks a result that must have changed nothing.
func (b *fixture) refusedWith(res protocol.Result, texts ...string) {
	b.t.Helper()
	failsWith(b.t, res, texts...)
	if res.Changed || b.approvals != 0 || !strings.Contains(res.Message, "nothing was changed") {
		b.t.Errorf("%d approvals, %+v", b.approvals, res)
	}
}

// said reports whether an event of phase, or of any when that is "", has text.
func (b *fixture) said(phase task.Phase, text string) bool {
	return slices.ContainsFunc(b.events, func(e task.Event) bool {
		return (phase == "" || e.Phase == phase) && strings.Contains(e.Text, text)
	})
}
