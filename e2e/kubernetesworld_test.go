package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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
		"WRKTALK_AGENT_HELM_RELEASE_NAME="+helmRelease, "WRKTALK_AGENT_HELM_TIMEOUT=10m"), settings...)
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
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if err := w.kube.AwaitServed(ctx, w.ns, "web", testenv.Served{Image: "registry.example/web:" + version, Updated: 1, Ready: 1}); err != nil {
		w.t.Errorf("release %s does not serve: %v", version, err)
	}
	if got := w.kubectl("get", "configmap", "web", "--output", "jsonpath={.data.release}"); got != version {
		w.t.Errorf("the configmap is of release %q, want %s", got, version)
	}
}

// letPodsStart takes from the pods what keeps them pending. It is to be called
// until that has shown: pods come and go, and one that goes between being listed
// and being changed is an error of kubectl's.
func (w *kubeWorld) letPodsStart() {
	w.t.Helper()
	if out, err := w.kube.Kubectl("--namespace", w.ns, "annotate", "pods", "--all", testenv.FailAnnotation+"-"); err != nil {
		w.t.Logf("%v: %s", err, out)
	}
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
