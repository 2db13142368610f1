package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// shipped is the directory of the manifests that are shipped.
const shipped = "../packaging/kubernetes"

// kubeAccount and helmRelease are the agent's service account, as shipped, and
// the release that it deploys.
const (
	kubeAccount = "wrktalk-agent"
	helmRelease = "shop"
)

// kubeWorld is a customer's namespace, with an agent that has the rights it is
// shipped with and no other.
type kubeWorld struct {
	*world
	kube *testenv.Kubernetes
	ns   string
}

// newKubeWorld returns a namespace of its own with the shipped Role in it, and
// a database as newWorld does.
func newKubeWorld(t testing.TB, settings ...string) *kubeWorld {
	t.Helper()
	kube := testenv.SharedKubernetes(t)
	w := &kubeWorld{world: newMachine(t, "none"), kube: kube, ns: kube.Namespace(t)}
	w.sql(`update deployment_config set deployment_type = 'kubernetes'`)
	w.kubeSettings(settings...)
	return w
}

// kubeSettings makes the world's agent one for Kubernetes.
func (w *kubeWorld) kubeSettings(settings ...string) {
	w.t.Helper()
	w.apply(map[string]any{"apiVersion": "v1", "kind": "List", "items": []any{
		w.manifest("ServiceAccount"), w.manifest("Role"), w.manifest("RoleBinding"),
	}})
	config, err := w.kube.ServiceAccountKubeconfig(w.ns, kubeAccount)
	if err != nil {
		w.t.Fatal(err)
	}
	w.env = append(append(w.env, "WRKTALK_AGENT_DEPLOYMENT_TYPE=kubernetes",
		"WRKTALK_AGENT_KUBE_KUBECONFIG="+config, "WRKTALK_AGENT_KUBE_NAMESPACE="+w.ns,
		"WRKTALK_AGENT_HELM_RELEASE_NAME="+helmRelease, "WRKTALK_AGENT_HELM_TIMEOUT=60s"), settings...)
	w.awaitRight("delete", "policy", "poddisruptionbudgets", true)
}

// manifest returns the shipped object of a kind.
func (w *kubeWorld) manifest(kind string) map[string]any {
	w.t.Helper()
	for _, o := range objects(w.t, "agent.yaml") {
		if o["kind"] == kind {
			return o
		}
	}
	w.t.Fatalf("no %s is shipped", kind)
	return nil
}

// objects returns the objects of a shipped file.
func objects(t testing.TB, file string) []map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(shipped, file))
	if err != nil {
		t.Fatal(err)
	}
	var found []map[string]any
	for _, doc := range strings.Split(string(data), "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		found = append(found, o)
	}
	return found
}

func (w *kubeWorld) apply(object any) {
	w.t.Helper()
	doc, err := json.Marshal(object)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.kube.Apply(w.ns, string(doc)); err != nil {
		w.t.Fatal(err)
	}
}

// awaitRight waits until the API has taken notice of a Role, which it does with
// a delay that can only be asked for.
func (w *kubeWorld) awaitRight(verb, group, resource string, want bool) {
	w.t.Helper()
	review := fmt.Sprintf(`{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{
		"user":"system:serviceaccount:%s:%s","resourceAttributes":{"namespace":%q,"verb":%q,"group":%q,"resource":%q}}}`,
		w.ns, kubeAccount, w.ns, verb, group, resource)
	w.eventually("the API knows the agent's rights", func() bool {
		out, err := w.kube.Do("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
		if err != nil {
			w.t.Fatal(err)
		}
		return strings.Contains(string(out), `"allowed":true`) == want
	})
}

// kubectl runs kubectl in the world's namespace, as cluster-admin.
func (w *kubeWorld) kubectl(args ...string) string {
	w.t.Helper()
	out, err := w.kube.Kubectl(append([]string{"--namespace", w.ns}, args...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// helm runs the standard program, as cluster-admin.
func (w *kubeWorld) helm(args ...string) string {
	w.t.Helper()
	out, err := w.kube.Helm(append(args, "--namespace", w.ns)...)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// revisions returns the release's history as the standard program tells it, such
// as "1 superseded, 2 deployed".
func (w *kubeWorld) revisions() string {
	w.t.Helper()
	var list []struct {
		Revision int
		Status   string
	}
	if err := json.Unmarshal([]byte(w.helm("history", helmRelease, "--output", "json")), &list); err != nil {
		w.t.Fatal(err)
	}
	var texts []string
	for _, r := range list {
		texts = append(texts, fmt.Sprintf("%d %s", r.Revision, r.Status))
	}
	return strings.Join(texts, ", ")
}

// listed is every kind that the shipped Role lets a chart hold, and pods.
const listed = "secrets,configmaps,services,serviceaccounts,persistentvolumeclaims,deployments,statefulsets,daemonsets," +
	"cronjobs,jobs,ingresses,networkpolicies,horizontalpodautoscalers,poddisruptionbudgets,replicasets,pods"

// objects returns the names of all objects in the namespace.
func (w *kubeWorld) objects() string {
	w.t.Helper()
	return w.kubectl("get", listed, "--output", "name")
}

// serves checks that one release is up: its pods are the ready ones, and what
// else belongs to it is there.
func (w *kubeWorld) serves(version string) {
	w.t.Helper()
	if got := w.kubectl("get", "deployment", "web", "--output", "jsonpath={.spec.template.spec.containers[0].image} {.status.readyReplicas}"); got != "registry.example/web:"+version+" 1" {
		w.t.Errorf("%q serves, want release %s", got, version)
	}
	if got := w.kubectl("get", "configmap", "web", "--output", "jsonpath={.data.release}"); got != version {
		w.t.Errorf("the configmap is of release %q, want %s", got, version)
	}
}

// letPodsStart takes from the pods what keeps them pending.
func (w *kubeWorld) letPodsStart() {
	w.t.Helper()
	w.kubectl("annotate", "pods", "--all", testenv.FailAnnotation+"-")
}

// chart returns a chart whose only Deployment fails as told.
func chart(version, fail string) bundle {
	return bundle{
		"Chart.yaml": "apiVersion: v2\nname: shop\nversion: " + version + "\n",
		"templates/web.yaml": `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {` + testenv.FailAnnotation + `: "` + fail + `"}}
    spec: {containers: [{name: web, image: "registry.example/web:` + version + `"}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {release: "` + version + `", greeting: {{ .Values.greeting | default "none" | quote }}}
`,
	}
}

// claim adds a claim for storage. Nothing here could provide that, so it is a
// hook, for which Helm does not wait; nor does it ever go, so each release has
// one of its own.
func (b bundle) claim(version string) bundle {
	b["templates/claim.yaml"] = `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: "web-` + version + `", annotations: {helm.sh/hook: "pre-install,pre-upgrade"}}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`
	return b
}

// everyKind adds an object of every other kind that the shipped Role allows.
func (b bundle) everyKind(version string) bundle {
	labels := `labels: {release: "` + version + `"}`
	b["templates/more.yaml"] = strings.ReplaceAll(`apiVersion: v1
kind: Secret
metadata: {name: web, LABELS}
stringData: {password: {{ .Values.password | default "none" | quote }}}
---
apiVersion: v1
kind: Service
metadata: {name: web, LABELS}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, LABELS}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, LABELS}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, image: registry.example/db}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe, LABELS}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec: {containers: [{name: probe, image: registry.example/probe}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, LABELS}
spec:
  schedule: "0 3 * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: registry.example/job}]}}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, LABELS}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: registry.example/job}]}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: schema, LABELS, annotations: {helm.sh/hook: "pre-install,pre-upgrade,pre-rollback"}}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: registry.example/schema}]}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, LABELS}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, LABELS}
spec: {podSelector: {matchLabels: {app: web}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web, LABELS}
spec: {maxReplicas: 2, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, LABELS}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
`, "LABELS", labels)
	return b
}

// push stores a chart as the backend does, and returns the artifact's id.
func (w *kubeWorld) push(version string, b bundle, values string) string {
	w.t.Helper()
	data := b.tarball(w.t)
	sum := sha256.Sum256(data)
	return w.sql(`insert into release_artifact (release_version, chart_type, artifact_data, values_data, sha256)
		values ('%s', 'helm', '\x%x', %s, '%s') returning id`, version, data, quote(values), hex.EncodeToString(sum[:]))
}

// completes waits for a task that must go well.
func (w *kubeWorld) completes(id string) row {
	w.t.Helper()
	r := w.await(id)
	if r.Status != "completed" || r.Result["status"] != "success" {
		w.t.Fatalf("task is %s", r.Raw)
	}
	return r
}

// notWord reports whether r separates the words of a subject.
func notWord(r rune) bool { return (r < 'A' || r > 'Z') && r != '_' }

// From the first release to a named rollback, with the shipped rights alone: the
// row, the cluster, Helm's own records, the flags and the mails all say the
// same. Defects 3, 9, 12, 13, 19, 24 and 25.
func TestDefect25HelmReleasesLiveWithTheShippedRole(t *testing.T) {
	w := newKubeWorld(t, "WRKTALK_AGENT_HELM_TIMEOUT=15s")
	releases := map[string]string{}
	for version, fail := range map[string]string{"1.0.0": "", "1.1.0": "", "1.2.0": testenv.FailCrash} {
		releases[version] = w.push(version, chart(version, fail).everyKind(version).claim(version),
			"greeting: hello from "+version+"\npassword: canary-7f3a91\n")
	}
	w.run()
	for _, step := range []struct {
		name, kind, artifact, serves, revisions, flags, notice string
		revision                                               float64
	}{
		{"install", "deploy", "1.0.0", "1.0.0", "1 deployed", "1.0.0|t|f|t\n1.1.0|f|f|f\n1.2.0|f|f|f", "SUCCESS", 1},
		{"upgrade", "deploy", "1.1.0", "1.1.0", "1 superseded, 2 deployed", "1.0.0|f|t|t\n1.1.0|t|f|t\n1.2.0|f|f|f", "SUCCESS", 2},
		{"break", "deploy", "1.2.0", "1.1.0", "1 superseded, 2 superseded, 3 failed, 4 deployed", "1.0.0|f|t|t\n1.1.0|t|f|t\n1.2.0|f|f|f", "FAILED", 4},
		{"roll back", "rollback", "", "1.0.0", "", "1.0.0|t|f|t\n1.1.0|f|t|t\n1.2.0|f|f|f", "ROLLBACK_SUCCESS", 5},
		{"roll back by name", "rollback", "1.1.0", "1.1.0", "", "1.0.0|f|t|t\n1.1.0|t|f|t\n1.2.0|f|f|f", "ROLLBACK_SUCCESS", 6},
	} {
		before := len(w.smtp.Mails())
		r := w.await(w.ask(step.kind, releases[step.artifact]))
		if step.notice != "FAILED" {
			if r.Status != "completed" || r.Result["release_version"] != step.serves || r.Error != "" {
				t.Fatalf("%s: task is %s", step.name, r.Raw)
			}
		} else if r.Status != "failed" || r.Result["restored"] != true || r.Result["serving_version"] != step.serves ||
			!strings.Contains(r.Error, `container "web" keeps ending: exit code 1`) || strings.Contains(r.Error, "\n") {
			t.Fatalf("%s: task is %s", step.name, r.Raw)
		}
		if r.Result["helmRevision"] != step.revision {
			t.Errorf("%s: helmRevision is %v, want %v", step.name, r.Result["helmRevision"], step.revision)
		}
		w.serves(step.serves)
		if got := w.kubectl("get", "service,ingress", "--output", "jsonpath={.items[*].metadata.labels.release}"); got != step.serves+" "+step.serves {
			t.Errorf("%s: service and ingress are of %q", step.name, got)
		}
		if got := w.flags(); got != step.flags {
			t.Errorf("%s: flags are %q, want %q", step.name, got, step.flags)
		}
		if got := w.revisions(); step.revisions != "" && got != step.revisions {
			t.Errorf("%s: history is %q, want %q", step.name, got, step.revisions)
		}
		if got := w.helm("get", "values", helmRelease); !strings.Contains(got, "greeting: hello from "+step.serves) {
			t.Errorf("%s: helm get values says %q", step.name, got)
		}
		if got := w.kubectl("get", "configmap", "web", "--output", "jsonpath={.data.greeting}"); got != "hello from "+step.serves {
			t.Errorf("%s: greeting is %q", step.name, got)
		}
		for _, s := range subjects(w.mails(before + 2)[before:]) {
			if !slices.Contains(strings.FieldsFunc(s, notWord), step.notice) {
				t.Errorf("%s: subject is %q", step.name, s)
			}
		}
	}
	if got := w.helm("list"); !strings.Contains(got, "shop-1.1.0") || !strings.Contains(got, "deployed") {
		t.Errorf("helm list says %q", got)
	}
	w.awaitClean()
	w.searchFor("canary-7f3a91")
}

// A first release that does not come up leaves nothing: no object, no record.
func TestFirstHelmReleaseThatFailsLeavesNothing(t *testing.T) {
	w := newKubeWorld(t, "WRKTALK_AGENT_HELM_TIMEOUT=12s")
	before := w.objects()
	w.run()
	r := w.deploy(w.push("1.0.0", chart("1.0.0", testenv.FailImagePull).everyKind("1.0.0"), ""))
	if r.Status != "failed" || !strings.Contains(r.Error, "ImagePullBackOff") || r.Result["restored"] == true || r.Result["serving_version"] != nil {
		t.Errorf("task is %s", r.Raw)
	}
	w.eventually("the garbage collector is done", func() bool { return w.objects() == before })
	if got := w.helm("list", "--all", "--short"); got != "" {
		t.Errorf("helm still lists %q", got)
	}
	if got := w.flags(); got != "1.0.0|f|f|f" {
		t.Errorf("flags are %q", got)
	}
	for _, s := range subjects(w.mails(2)) {
		if !strings.Contains(s, "FAILED") {
			t.Errorf("subject is %q", s)
		}
	}
	w.awaitClean()
}

// A right that is missing is named before anything is touched.
func TestMissingRightIsNamedAndNothingTouched(t *testing.T) {
	w := newKubeWorld(t)
	role := w.manifest("Role")
	for _, r := range role["rules"].([]any) {
		rule := r.(map[string]any)
		rule["resources"] = slices.DeleteFunc(rule["resources"].([]any), func(name any) bool { return name == "ingresses" })
	}
	w.apply(role)
	w.awaitRight("patch", "networking.k8s.io", "ingresses", false)
	before := w.objects()
	w.run()
	r := w.deploy(w.push("1.0.0", chart("1.0.0", "").everyKind("1.0.0"), ""))
	want := fmt.Sprintf("system:serviceaccount:%s:%s may not create, delete, get, patch ingresses.networking.k8s.io in namespace %q: grant", w.ns, kubeAccount, w.ns)
	if r.Status != "failed" || !strings.Contains(r.Error, want) || strings.Contains(r.Error, "\n") {
		t.Errorf("task is %s, want %q", r.Raw, want)
	}
	if got := w.objects(); got != before {
		t.Errorf("the namespace holds\n%s\nbefore:\n%s", got, before)
	}
	w.mails(2)
	w.awaitClean()

	// With the right restored the same artifact goes through.
	w.apply(w.manifest("Role"))
	w.awaitRight("patch", "networking.k8s.io", "ingresses", true)
	w.completes(w.ask("deploy", w.sql(`select id from release_artifact`)))
	w.serves("1.0.0")
}

// A Kubernetes agent and a Compose agent on one database: each does its own
// tasks, one while the other is in the middle of its own. Defects 9 and 10.
func TestDefect10KubernetesAndComposeAgentsShareADatabase(t *testing.T) {
	image := testenv.AppImage(t, "1.0.0")
	docker := newWorld(t)
	kube := testenv.SharedKubernetes(t)
	w := &kubeWorld{
		world: &world{t: t, db: docker.db, smtp: docker.smtp, dir: t.TempDir(), env: slices.Clone(docker.env)},
		kube:  kube, ns: kube.Namespace(t),
	}
	w.kubeSettings("STATE_DIRECTORY="+filepath.Join(w.dir, "state"), "RUNTIME_DIRECTORY="+filepath.Join(w.dir, "run"), "HOME="+w.dir)
	chartTask := w.ask("deploy", w.push("1.0.0", chart("1.0.0", testenv.FailPending), ""))
	bundleTask := w.ask("deploy", docker.release("1.0.0", compose(image).tarball(t), ""))
	w.run()
	w.awaitState(chartTask, "waiting")
	if r := w.row(bundleTask); r.Status != "pending" {
		t.Errorf("the Kubernetes agent took the bundle: %s", r.Raw)
	}
	docker.run()
	if r := docker.await(bundleTask); r.Status != "completed" {
		t.Fatalf("the bundle's task is %s", r.Raw)
	}
	if r := w.row(chartTask); r.Status != "inProgress" {
		t.Errorf("the chart's task is %s", r.Raw)
	}
	w.letPodsStart()
	w.completes(chartTask)
	w.serves("1.0.0")
	if got := docker.get("/"); got != "1.0.0" {
		t.Errorf("%q serves", got)
	}
	if got := w.sql(`select chart_type, is_current from release_artifact order by chart_type`); got != "compose|t\nhelm|t" {
		t.Errorf("flags are %q", got)
	}
	w.mails(4)
	w.awaitClean()
	docker.awaitClean()
}

// What is shipped is accepted by the API and comes up, its variables are the
// agent's, its password comes from a Secret, and Kubernetes waits longer for the
// end than the agent may take. Defects 18 and 25.
func TestDefect25ShippedManifestsAreAccepted(t *testing.T) {
	w := newKubeWorld(t)
	for _, file := range []string{"secret.yaml", "agent.yaml"} {
		text, err := os.ReadFile(filepath.Join(shipped, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.kube.Apply(w.ns, string(text)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.kube.Await(ctx, "/apis/apps/v1/namespaces/"+w.ns+"/deployments", kubeAccount, testenv.HasCondition("Available")); err != nil {
		t.Fatal(err)
	}
	for _, o := range objects(t, "agent.yaml") {
		if o["kind"] == "ConfigMap" || o["kind"] == "ClusterRole" || o["kind"] == "ClusterRoleBinding" || o["kind"] == "Namespace" {
			t.Errorf("a %s is shipped", o["kind"])
		}
	}
	for _, r := range w.manifest("Role")["rules"].([]any) {
		for _, part := range []string{"apiGroups", "resources", "verbs"} {
			for _, s := range r.(map[string]any)[part].([]any) {
				if s == "*" || strings.HasPrefix(s.(string), "role") {
					t.Errorf("the Role holds %q in %s", s, part)
				}
			}
		}
	}

	var pod struct {
		Items []struct {
			Spec struct {
				TerminationGracePeriodSeconds int
				Containers                    []struct {
					Env []struct {
						Name, Value string
						ValueFrom   *struct{ FieldRef *struct{ FieldPath string } }
					}
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(w.kubectl("get", "pods", "--output", "json")), &pod); err != nil || len(pod.Items) != 1 {
		t.Fatal(err, len(pod.Items))
	}
	spec := pod.Items[0].Spec
	password := filepath.Join(w.dir, "password")
	if err := os.WriteFile(password, []byte("change-me\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.env = []string{"HOME=" + w.dir}
	for _, e := range spec.Containers[0].Env {
		switch {
		case e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.namespace":
			e.Value = w.ns
		case e.Name == "WRKTALK_AGENT_DB_PASSWORD_FILE":
			e.Value = password
		case strings.Contains(e.Name, "PASSWORD"):
			t.Errorf("%s is a variable", e.Name)
		}
		w.env = append(w.env, e.Name+"="+e.Value)
	}
	out, stderr, code := w.command("config", "--output", "json")
	if code != 0 || stderr != "" {
		t.Errorf("the shipped variables: exit code %d\n%s", code, stderr)
	}
	if strings.Contains(out, "change-me") {
		t.Error("config shows the password")
	}
	// Grace, restoring within helm.timeout, and what the supervisor adds for
	// maintenance and recording: 10m, 10m and 4m.
	if least := 24 * 60; spec.TerminationGracePeriodSeconds <= least {
		t.Errorf("the pod has %d s to end, the agent may take %d", spec.TerminationGracePeriodSeconds, least)
	}
}
