package helm

import (
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// set is a chart with a StatefulSet alone, whose pods carry the values' annotations.
func set(version string) map[string]string {
	return map[string]string{
		"Chart.yaml":  "apiVersion: v2\nname: app\nversion: " + version + "\n",
		"values.yaml": "pod: {}\n",
		"templates/set.yaml": `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  replicas: 2
  serviceName: web
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, version: {{ .Chart.Version | quote }}}, annotations: {{ .Values.pod | toJson }}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: example.test/web:{{ .Chart.Version }}}]}
`,
	}
}

// TestForcedRollback restores a StatefulSet, which waits for a pod of the failed release
// until somebody deletes it. Without the right to do so the agent says who has to go.
func TestForcedRollback(t *testing.T) {
	t.Parallel()
	versions := func(b *fixture) string {
		return b.kubectl("get", "pods", "--selector", "app=web", "--output", "jsonpath={.items[*].metadata.labels.version}")
	}
	t.Run("with the right", func(t *testing.T) {
		t.Parallel()
		b := newFixture(t)
		one := b.release("1.0.0", set("1.0.0"), "")
		b.up(one, nil)
		res := b.expire(b.job(b.release("2.0.0", set("2.0.0"), failing(testenv.FailCrash)), one), "statefulset/web", crashed)
		failsWith(t, res, `statefulset "web" is`, `pod "web-1"`, "keeps ending")
		if !res.Restored || res.Serving != "1.0.0" || !b.said(task.PhaseWaiting, `deleting pod "web-1": it is of an earlier revision and not ready`) {
			t.Errorf("%+v", res)
		}
		if got := versions(b); got != "1.0.0 1.0.0" {
			t.Errorf("the pods are of %s", got)
		}
	})
	t.Run("without it", func(t *testing.T) {
		t.Parallel()
		b := newFixture(t)
		path, err := b.k.ServiceAccountKubeconfig(b.ns, "agent")
		if err != nil {
			t.Fatal(err)
		}
		admin := b.kubeconfig
		b.kubeconfig = path
		b.allow(forRecords + `,{"apiGroups":["apps"],"resources":["statefulsets"],"verbs":["get","create","patch","delete"]},
			{"apiGroups":[""],"resources":["pods","events"],"verbs":["get","list"]}`)
		one := b.release("1.0.0", set("1.0.0"), "")
		b.await(one, "")
		job := b.job(b.release("2.0.0", set("2.0.0"), failing(testenv.FailCrash)), one)
		job.RestoreTimeout = enough()
		res := b.expire(job, "statefulset/web", crashed)
		failsWith(t, res, "RESTORING release 1.0.0 FAILED as well", `pod "web-1"`, "kubectl delete pod web-1 --namespace "+b.ns)
		if !b.said(task.PhaseWaiting, `statefulset "web" waits for pod "web-1" of an earlier revision, which the agent may not delete`) {
			t.Errorf("%+v", res)
		}
		// The next release may delete what the failed one left.
		b.kubeconfig = admin
		b.up(b.release("3.0.0", set("3.0.0"), ""), one)
		if got := versions(b); got != "3.0.0 3.0.0" {
			t.Errorf("the pods are of %s", got)
		}
	})
}

func TestPredicate(t *testing.T) {
	for text, want := range map[string]string{
		"0/1 ready": "is 0/1 ready", "not bound to a volume": "is not bound to a volume", "has no external address": "has no external address",
	} {
		if got := (readiness{text: text}).predicate(); got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
}
