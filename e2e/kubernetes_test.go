package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// notWord reports whether r separates the words of a subject.
func notWord(r rune) bool { return (r < 'A' || r > 'Z') && r != '_' }

// helmFails is for a release that must run into Helm's limit, for which there is
// no event: it holds on a slow machine what has to happen first, and going back.
const helmFails = "WRKTALK_AGENT_HELM_TIMEOUT=90s"

// From the first release to a named rollback, with the shipped rights alone: the
// row, the cluster, Helm's own records, the flags and the mails all say the
// same. Defects 3, 9, 12, 13, 19, 24 and 25.
func TestDefect25HelmReleasesLiveWithTheShippedRole(t *testing.T) {
	t.Parallel()
	w := newKubeWorld(t)
	releases := map[string]string{}
	for version, fail := range map[string]string{"1.0.0": "", "1.1.0": "", "1.2.0": testenv.FailCrash} {
		releases[version] = w.push(version, chart(version, fail).everyKind(version).claim(version),
			"greeting: hello from "+version+"\npassword: canary-7f3a91\n")
	}
	run := func(settings ...string) {
		w.stop()
		w.run(settings...)
	}
	run()
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
		if step.notice == "FAILED" {
			run(helmFails)
		}
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
		w.awaitClean()
		w.searchFor("canary-7f3a91")
		if step.notice == "FAILED" {
			run()
		}
	}
	if got := w.helm("list"); !strings.Contains(got, "shop-1.1.0") || !strings.Contains(got, "deployed") {
		t.Errorf("helm list says %q", got)
	}
}

// A first release that does not come up leaves nothing: no object, no record.
func TestFirstHelmReleaseThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newKubeWorld(t, helmFails)
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
	t.Parallel()
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
	t.Parallel()
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
	w.eventually("the chart's task ends", func() bool {
		w.letPodsStart()
		return w.row(chartTask).Status != "inProgress"
	})
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
	t.Parallel()
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
	// Which authority signs the database's certificate nobody but its owner knows.
	if code != 0 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "db.ssl_mode is prefer: nothing proves that postgres is the database") {
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

// check asks the API that the agent would deploy to, as the user it would be.
func TestCheckAsksKubernetes(t *testing.T) {
	t.Parallel()
	w := newKubeWorld(t)
	out, stderr, code := w.command("check")
	if code != 0 || !strings.Contains(out, "Kubernetes v") {
		t.Errorf("check: exit code %d\n%s%s", code, out, stderr)
	}
	w.env = append(w.env, "WRKTALK_AGENT_KUBE_KUBECONFIG="+filepath.Join(t.TempDir(), "none"))
	out, _, code = w.command("check")
	if code != 1 || !strings.Contains(out, "check kube.kubeconfig") {
		t.Errorf("check without a kubeconfig: exit code %d\n%s", code, out)
	}
}
