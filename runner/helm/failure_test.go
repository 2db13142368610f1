package helm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestFailingPodsAreNamed(t *testing.T) {
	t.Parallel()
	for how, c := range map[string]struct{ pods, want string }{
		testenv.FailCrash:     {crashed, `container "main" keeps ending: exit code 1, restarted 5 times`},
		testenv.FailImagePull: {noImage, `container "main" cannot start (ImagePullBackOff): Back-off pulling image "example.test/web:2.0.0"`},
		testenv.FailUnready:   {started, `container "main" runs but is not ready`},
		testenv.FailPending:   {"condition=PodScheduled", `is not ready`},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			one := b.release("1.0.0", files("1.0.0", nil), "")
			b.up(one, nil)
			two := b.release("2.0.0", files("2.0.0", nil), failing(how))
			res := b.expire(b.job(two, one), notReady, c.pods)
			failsWith(t, res, "release 2.0.0 "+notUp, `deployment "web" is 0/1 ready: pod "web-`, c.want)
			if !res.Restored || !res.Changed || res.Serving != "1.0.0" || res.HelmRevision != 3 ||
				!strings.Contains(res.Message, "release 1.0.0 was restored and serves as revision 3") {
				t.Errorf("%+v", res)
			}
			if !b.said(task.PhaseWaiting, "deployment/web 0/1 ready") || !b.said(task.PhaseRestoring, "rolling back to revision 1") {
				t.Error("events are missing")
			}
			b.serves("1.0.0")
			if got := b.statuses(); got != "1 superseded, 2 failed, 3 deployed" {
				t.Errorf("history: %s", got)
			}
		})
	}
}

// quota limits the pods of the namespace, and waits until that is in force.
func (b *fixture) quota(name string, pods int) {
	b.t.Helper()
	if err := b.k.Apply(b.ns, fmt.Sprintf(`{"apiVersion":"v1","kind":"ResourceQuota","metadata":{"name":%q},"spec":{"hard":{"pods":"%d"}}}`, name, pods)); err != nil {
		b.t.Fatal(err)
	}
	if err := b.k.Await(b.t.Context(), "/api/v1/namespaces/"+b.ns+"/resourcequotas", name, func(o []byte) bool {
		return strings.Contains(string(o), `"used"`)
	}); err != nil {
		b.t.Fatal(err)
	}
}

// TestEventsAreQuoted lets the API refuse the pods: only an event says so.
func TestEventsAreQuoted(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	b.quota("few", 1)
	b.onEvent = func(e task.Event) {
		if strings.Contains(e.Text, "deployment/web 0/3 ready") {
			b.kubectl("wait", "events", "--for", "create", "--field-selector", "reason=FailedCreate", "--timeout", limit.String())
		}
	}
	failsWith(t, b.expire(b.job(b.release("2.0.0", files("2.0.0", nil), "replicas: 3\n"), one), "deployment/web 0/3 ready", ""), "exceeded quota: few")
	b.serves("1.0.0")
}

func TestFirstInstallLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	more := map[string]string{"templates/before.yaml": hook("before", "pre-install", "")}
	res := b.expire(b.job(b.release("1.0.0", files("1.0.0", more), failing(testenv.FailCrash)), nil), notReady, crashed)
	failsWith(t, res, "keeps ending")
	if res.Restored || !res.Changed || res.Serving != "" || !strings.Contains(res.Message, "it was removed; nothing served before") {
		t.Errorf("%+v", res)
	}
	b.nothing()
	if out := b.helm("list", "--all"); strings.Contains(out, releaseName+"\t") {
		t.Errorf("list: %s", out)
	}
	// The way is free for the next one.
	b.up(b.release("1.0.1", files("1.0.1", nil), ""), nil)
}

// TestRemovalTakesLong has an object that does not go: the controller that lets
// go of volumes does not run here.
func TestRemovalTakesLong(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	more := map[string]string{
		"templates/volume.yaml": "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n",
	}
	job := b.job(b.release("1.0.0", files("1.0.0", more), ""), nil)
	job.RestoreTimeout = enough()
	res := b.expire(job, "persistentvolumeclaim/data not bound", "")
	failsWith(t, res, `persistentvolumeclaim "data" is not bound to a volume`, `persistentvolumeclaim "data" not gone yet`)
	if !res.Changed || !strings.Contains(res.Message, "look at the cluster") {
		t.Errorf("%+v", res)
	}
	b.kubectl("patch", "persistentvolumeclaim", "data", "--patch", `{"metadata":{"finalizers":null}}`)
	b.nothing()
}

func TestFailingHooks(t *testing.T) {
	t.Parallel()
	fail := fmt.Sprintf("%s: %s", testenv.FailAnnotation, testenv.FailExit)
	for name, c := range map[string]struct{ event, want string }{
		"before": {"pre-upgrade", `release 2.0.0 did not come up: hook job/bad failed: pod "bad-`},
		"after":  {"post-upgrade", `release 2.0.0 did not come up: hook job/bad failed: pod "bad-`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			one := b.release("1.0.0", files("1.0.0", nil), "")
			b.up(one, nil)
			text := hook("bad", c.event, fail)
			if name == "after" { // its pods are gone when Helm returns
				text = strings.Replace(text, "annotations: {helm.sh/hook:", `annotations: {helm.sh/hook-delete-policy: hook-failed, helm.sh/hook:`, 1)
			}
			res := b.run(b.job(b.release("2.0.0", files("2.0.0", map[string]string{"templates/bad.yaml": text}), ""), one))
			failsWith(t, res, c.want, `container "main" ended: exit code 1`)
			if !res.Restored || res.Serving != "1.0.0" {
				t.Errorf("%+v", res)
			}
			b.serves("1.0.0")
		})
	}
	t.Run("first install", func(t *testing.T) {
		t.Parallel()
		b := newFixture(t)
		res := b.run(b.job(b.release("1.0.0", files("1.0.0", map[string]string{"templates/bad.yaml": hook("bad", "post-install", fail)}), ""), nil))
		failsWith(t, res, "hook job/bad failed")
		b.nothing()
	})
	t.Run("too slow", func(t *testing.T) {
		t.Parallel()
		b := newFixture(t)
		one := b.release("1.0.0", files("1.0.0", nil), "")
		b.up(one, nil)
		slow := hook("slow", "pre-upgrade", testenv.RunForAnnotation+": 1h")
		rel := b.release("2.0.0", files("2.0.0", map[string]string{"templates/slow.yaml": slow}), "")
		// Once the child notices by itself, once it is killed.
		job := b.job(rel, one)
		job.Timeout = enough()
		failsWith(t, b.run(job), "was not up after "+enough().String()+": hook job/slow was not done in time", `container "main" still runs`)
		b.serves("1.0.0")
		b.onEvent = func(e task.Event) {
			if strings.Contains(e.Text, "running hook job/slow") {
				b.kubectl("wait", "--for", "create", "pods", "--selector", "job-name=slow", "--timeout", limit.String())
				b.kubectl("wait", "--for", started, "pods", "--selector", "job-name=slow", "--timeout", limit.String())
			}
		}
		failsWith(t, b.expire(b.job(rel, one), "running hook job/slow", ""), notUp+": hook job/slow was not done in time", `pod "slow-`, `container "main" still runs`)
		b.serves("1.0.0")
	})
	t.Run("rollback hook", func(t *testing.T) {
		t.Parallel()
		b := newFixture(t)
		one := b.release("1.0.0", files("1.0.0", map[string]string{"templates/bad.yaml": hook("bad", "pre-rollback", fail)}), "")
		b.up(one, nil)
		res := b.expire(b.job(b.release("2.0.0", files("2.0.0", nil), failing(testenv.FailCrash)), one), notReady, crashed)
		failsWith(t, res, "keeps ending", "RESTORING release 1.0.0 FAILED as well: hook job/bad failed")
		if res.Restored || res.Serving != "" || !strings.Contains(res.Message, "could not be restored") {
			t.Errorf("%+v", res)
		}
		// Helm would leave it pending-rollback, and every later upgrade refused.
		if got := b.statuses(); got != "1 deployed, 2 failed, 3 failed" {
			t.Errorf("history: %s", got)
		}
		b.up(b.release("3.0.0", files("3.0.0", nil), ""), one)
		b.serves("3.0.0")
	})
}

// TestRefusedByTheAPI lets the API reject an object in the middle of applying: the
// preflight cannot tell what a hook is going to change.
func TestRefusedByTheAPI(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	two := b.release("2.0.0", files("2.0.0", map[string]string{
		"templates/web.yaml":     strings.ReplaceAll(files("2.0.0", nil)["templates/web.yaml"], "app: web", "app: other"),
		"templates/before.yaml":  operatorHook("before", ""),
		"templates/account.yaml": "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: before, annotations: {helm.sh/hook: pre-upgrade, helm.sh/hook-weight: '-1'}}\n",
	}), "password: hunter22\n")
	res := b.run(b.job(two, one))
	failsWith(t, res, "release 2.0.0 did not come up", "field is immutable")
	if !res.Restored || res.Serving != "1.0.0" {
		t.Errorf("%+v", res)
	}
	b.serves("1.0.0")
}

// operatorHook is a Job that runs before an upgrade with a service account of its own,
// as hooks do that change the cluster.
func operatorHook(name, annotations string) string {
	return strings.Replace(hook(name, "pre-upgrade", annotations), "spec: {restartPolicy", "spec: {serviceAccountName: "+name+", restartPolicy", 1)
}

// TestSecretsAreMasked has the API quote a Secret.
func TestSecretsAreMasked(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	more := map[string]string{"templates/secret.yaml": `apiVersion: v1
kind: Secret
metadata: {name: "Not_Allowed {{ .Values.password }} {{ .Values.license }}"}
stringData: {db-password: {{ .Values.password | quote }}, license: {{ .Values.license | quote }}, drawn: "{{ "drawn-by-the-template" }}"}
`, "templates/fail.yaml": `{{ if eq .Values.greeting "fail" }}{{ fail (printf "no: %s, drawn-by-the-template" .Values.password) }}{{ end }}`}
	for _, greeting := range []string{"hello", "fail"} {
		res := b.run(b.job(b.release("1.0.0", files("1.0.0", more), "password: hunter22\nlicense: 'AAAA-BBBB-CCCC'\ngreeting: "+greeting+"\n"), nil))
		failsWith(t, res, "")
		for _, secret := range []string{"hunter22", "AAAA-BBBB-CCCC"} {
			if secret == "AAAA-BBBB-CCCC" && greeting == "fail" {
				continue
			}
			if strings.Contains(res.Error, secret) || strings.Contains(b.log, secret) {
				t.Errorf("%s shows in %q or in the log", secret, res.Error)
			}
		}
	}
	b.nothing()
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	stopped := errors.New("the operator stopped it")
	for _, phase := range []task.Phase{task.PhasePreflight, task.PhaseApplying, task.PhaseWaiting} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			one := b.release("1.0.0", files("1.0.0", nil), "")
			b.up(one, nil)
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			b.onEvent = func(e task.Event) {
				if e.Phase == phase {
					cancel(stopped)
				}
			}
			res := b.runContext(ctx, b.job(b.release("2.0.0", files("2.0.0", nil), failing(testenv.FailUnready)), one))
			failsWith(t, res, stopped.Error())
			if res.Serving != "1.0.0" || phase == task.PhaseWaiting && !res.Restored || phase == task.PhasePreflight && res.Changed {
				t.Errorf("%+v", res)
			}
			b.serves("1.0.0")
			for _, r := range b.history() {
				if strings.HasPrefix(r.Status, "pending") {
					t.Errorf("revision %d is %s", r.Revision, r.Status)
				}
			}
			b.onEvent = nil
			b.up(b.release("3.0.0", files("3.0.0", nil), ""), one)
		})
	}
}

// TestNothingGoesOn interrupts while Helm waits for a hook, and watches that the
// objects which come after the hook are never applied.
func TestNothingGoesOn(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	b.onEvent = func(e task.Event) {
		if strings.Contains(e.Text, "running hook job/slow") {
			cancel(errors.New("stop"))
		}
	}
	more := map[string]string{"templates/slow.yaml": hook("slow", "pre-upgrade", testenv.RunForAnnotation+": 3s")}
	res := b.runContext(ctx, b.job(b.release("2.0.0", files("2.0.0", more), ""), one))
	failsWith(t, res, "stop")
	before := b.kubectl("get", "configmap", "config", "--output", "jsonpath={.metadata.resourceVersion}")
	// The hook ends; a goroutine of Helm that were left would go on now.
	if err := b.k.Await(t.Context(), "/apis/batch/v1/namespaces/"+b.ns+"/jobs", "slow", testenv.HasCondition("Complete")); err != nil {
		t.Fatal(err)
	}
	b.serves("1.0.0")
	if after := b.kubectl("get", "configmap", "config", "--output", "jsonpath={.metadata.resourceVersion}"); after != before {
		t.Error("the ConfigMap was changed after the result")
	}
	if got := b.statuses(); got != "1 superseded, 2 failed, 3 deployed" {
		t.Errorf("history: %s", got)
	}
}

func TestApprovalIsDenied(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.approve = func(context.Context) error { return errors.New("maintenance is required") }
	res := b.run(b.job(b.release("1.0.0", files("1.0.0", nil), ""), nil))
	failsWith(t, res, "maintenance is required")
	if res.Changed || b.approvals != 1 {
		t.Errorf("%+v", res)
	}
	b.nothing()
}

func TestRestoreFails(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	// What served before cannot come up any more: its pods meet a quota.
	b.onEvent = func(e task.Event) {
		if e.Phase == task.PhaseRestoring {
			b.quota("none", 0)
			b.kubectl("delete", "pods", "--all", "--wait=false")
		}
	}
	job := b.job(b.release("2.0.0", files("2.0.0", nil), failing(testenv.FailCrash)), one)
	job.RestoreTimeout = enough() // for real
	res := b.expire(job, notReady, crashed)
	failsWith(t, res, "keeps ending", "RESTORING release 1.0.0 FAILED as well: it was not up after "+enough().String(), "exceeded quota")
	if res.Restored || res.Serving != "" || !strings.Contains(res.Message, "look at the cluster") {
		t.Errorf("%+v", res)
	}
}

// TestRestoreIsRefused has the failed release bring a webhook that cannot be called, so
// that the release before it cannot be restored: that is said, also when the time was
// up in the end.
func TestRestoreIsRefused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	more := map[string]string{"templates/webhook.yaml": `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: '{{ .Release.Namespace }}'}
webhooks:
- name: v.example.test
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 2
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: '{{ .Release.Namespace }}'}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}]
  clientConfig: {service: {name: nothing, namespace: '{{ .Release.Namespace }}', path: /}}
`}
	defer b.kubectl("delete", "validatingwebhookconfiguration", b.ns)
	job := b.job(b.release("2.0.0", files("2.0.0", more), failing(testenv.FailCrash)), one)
	job.RestoreTimeout = enough()
	res := b.expire(job, notReady, crashed)
	failsWith(t, res, "keeps ending", "RESTORING release 1.0.0 FAILED as well", `failed calling webhook "v.example.test"`)
	if res.Restored || res.Serving != "" {
		t.Errorf("%+v", res)
	}
}
