package helm

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/release"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// parts are objects of which something cannot be changed.
var parts = map[string]string{
	"templates/job.yaml": `apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: example.test/job:1}]}}}
`,
	"templates/set.yaml": `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: set}
spec:
  replicas: 0
  serviceName: set
  selector: {matchLabels: {app: set}}
  template: {metadata: {labels: {app: set}}, spec: {containers: [{name: main, image: example.test/set:1}]}}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]
`,
	"templates/service.yaml":  "apiVersion: v1\nkind: Service\nmetadata: {name: service}\nspec: {ports: [{port: 80}]}\n",
	"templates/constant.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: constant}\nimmutable: true\ndata: {a: '1'}\n",
	"templates/binding.yaml": `apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: binding}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: one}
`,
}

// TestRefusedBeforehand has the API say, before anything is changed, what it would not
// take.
func TestRefusedBeforehand(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", parts), "")
	b.up(one, nil)
	if err := b.k.Apply(b.ns, "apiVersion: v1\nkind: Service\nmetadata: {name: taken}\nspec: {type: NodePort, ports: [{port: 80}]}\n"); err != nil {
		t.Fatal(err)
	}
	port := b.kubectl("get", "service", "taken", "--output", "jsonpath={.spec.ports[0].nodePort}")
	b.policy("configmaps", "!has(object.data) || !('forbidden' in object.data)", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"forbidden":""}}`)
	b.objectQuota("few", "count/persistentvolumeclaims", 0)

	const inPlace = "it cannot be changed in place: remove the object first, or give it another name in the chart"
	changed := func(name, from, to string) map[string]string {
		return map[string]string{"templates/" + name + ".yaml": strings.ReplaceAll(parts["templates/"+name+".yaml"], from, to)}
	}
	added := func(text string) map[string]string { return map[string]string{"templates/added.yaml": text} }
	for name, c := range map[string]struct {
		more map[string]string
		want []string
	}{
		"template of a job":      {changed("job", "job:1", "job:2"), []string{`job "job": Job.batch "job" is invalid: spec.template: Invalid value: {…}: field is immutable (` + inPlace}},
		"selector":               {map[string]string{"templates/web.yaml": strings.ReplaceAll(files("1.0.0", nil)["templates/web.yaml"], "app: web", "app: other")}, []string{`deployment "web"`, "field is immutable"}},
		"address of a service":   {changed("service", "{port: 80}]", "{port: 80}], clusterIP: 10.96.77.77"), []string{`service "service"`, "may not change once set", inPlace}},
		"volume claim templates": {changed("set", "1Gi", "2Gi"), []string{`statefulset "set"`, "volumeClaimTemplates: Invalid value: {…}: field is immutable", inPlace}},
		"role of a binding":      {changed("binding", "name: one", "name: two"), []string{`rolebinding "binding"`, "roleRef", inPlace}},
		"immutable config map":   {changed("constant", "'1'", "'2'"), []string{`configmap "constant"`, "field is immutable when `immutable` is set"}},
		"type of a value":        {added("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: added}\ndata: {port: 8080}\n"), []string{"of type string"}},
		"name":                   {added("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_Allowed}\n"), []string{`configmap "Not_Allowed"`, "RFC 1123"}},
		"port in use":            {added("apiVersion: v1\nkind: Service\nmetadata: {name: added}\nspec: {type: NodePort, ports: [{port: 80, nodePort: " + port + "}]}\n"), []string{`service "added"`, "provided port is already allocated"}},
		"namespace":              {added("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: added, namespace: " + b.ns + "-missing}\n"), []string{`configmap "added"`, `-missing" not found (create the namespace before)`}},
		"policy":                 {added("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: added}\ndata: {forbidden: ''}\n"), []string{`configmap "added"`, "the policy does not like it"}},
		"quota":                  {added("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: added}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n"), []string{`persistentvolumeclaim "added"`, "exceeded quota: few"}},
		"hook":                   {added("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_Allowed, annotations: {helm.sh/hook: post-upgrade}}\n"), []string{`configmap "Not_Allowed"`, "RFC 1123"}},
		"several":                {added("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: A}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: B}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: C}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: D}\n"), []string{`configmap "A"`, `configmap "C"`, "; and 1 more"}},
		"secret in the answer":   {added("apiVersion: v1\nkind: Secret\nmetadata: {name: 'No_{{ .Values.password }}'}\n"), []string{"RFC 1123"}},
	} {
		t.Run(name, func(t *testing.T) {
			more := map[string]string{}
			for _, m := range []map[string]string{parts, c.more} {
				for file, text := range m {
					more[file] = text
				}
			}
			res := b.run(b.job(b.release("2.0.0", files("1.0.0", more), "password: hunter22\n"), one))
			b.refusedWith(res, c.want...)
			if strings.Contains(res.Error, "hunter22") || strings.Contains(b.log, "hunter22") {
				t.Error("it shows a secret")
			}
		})
	}
	b.serves("1.0.0")
	if got := b.statuses(); got != "1 deployed" {
		t.Errorf("history: %s", got)
	}
	// A rollback is asked about as well.
	b.up(b.release("3.0.0", files("3.0.0", nil), ""), one)
	b.objectQuota("no-jobs", "count/jobs.batch", 0)
	b.refusedWith(b.run(b.rollbackJob(one, nil)), `job "job"`, "exceeded quota: no-jobs")
}

// TestPodsAreRefusedBeforehand has the API refuse the pods of workloads, not those
// themselves.
func TestPodsAreRefusedBeforehand(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	b.kubectl("label", "namespace", b.ns, "pod-security.kubernetes.io/enforce=baseline")
	chart := func(container string) map[string]string {
		f := files("2.0.0", nil)
		f["templates/web.yaml"] = strings.Replace(f["templates/web.yaml"], "{name: main,", "{name: main, "+container+",", 1)
		return f
	}
	privileged := chart("securityContext: {privileged: true}")
	b.refusedWith(b.run(b.job(b.release("2.0.0", privileged, ""), one)), `deployment "web": pods "web-`, "violates PodSecurity")
	privileged["templates/namespace.yaml"] = "apiVersion: v1\nkind: Namespace\nmetadata: {name: '{{ .Release.Namespace }}'}\n"
	res := b.run(b.job(b.release("2.1.0", privileged, ""), one)) // which may change the label
	failsWith(t, res, `namespace "`+b.ns+`" exists and belongs to no Helm release`)
	b.refusedWith(b.run(b.job(b.release("2.2.0", files("2.2.0", privilegedPod()), ""), one)), `pod "bare": pods "bare" is forbidden: violates PodSecurity`)

	b.objectQuota("small", "requests.cpu", 1)
	b.refusedWith(b.run(b.job(b.release("3.0.0", chart("resources: {requests: {cpu: 2}}"), ""), one)), `deployment "web"`, "exceeded quota: small, requested: requests.cpu=2")
	b.refusedWith(b.run(b.job(b.release("4.0.0", files("4.0.0", nil), ""), one)), `deployment "web"`, "must specify requests.cpu")
	// What has no pods to start is let pass, and what fits.
	b.up(b.release("5.0.0", chart("resources: {requests: {cpu: 500m}}"), ""), one)
	paused := chart("resources: {requests: {cpu: 2}}")
	paused["templates/web.yaml"] = strings.Replace(paused["templates/web.yaml"], "spec:\n", "spec:\n  paused: true\n", 1)
	b.up(b.release("6.0.0", paused, ""), one)
}

func privilegedPod() map[string]string {
	return map[string]string{"templates/bare.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: bare}\nspec: {hostNetwork: true, containers: [{name: main, image: example.test/bare}]}\n"}
}

// objectQuota limits the objects of a kind in the namespace, and waits until that is in force.
func (b *fixture) objectQuota(name, kind string, most int) {
	b.t.Helper()
	if err := b.k.Apply(b.ns, fmt.Sprintf(`{"apiVersion":"v1","kind":"ResourceQuota","metadata":{"name":%q},"spec":{"hard":{%q:"%d"}}}`, name, kind, most)); err != nil {
		b.t.Fatal(err)
	}
	if err := b.k.Await(b.t.Context(), "/api/v1/namespaces/"+b.ns+"/resourcequotas", name, func(o []byte) bool {
		return strings.Contains(string(o), `"used"`)
	}); err != nil {
		b.t.Fatal(err)
	}
}

// TestNotRefusedBeforehand deploys what a dry run of each object alone would not let
// pass, but the standard program deploys.
func TestNotRefusedBeforehand(t *testing.T) {
	t.Parallel()
	chart := func(version string, more map[string]string) map[string]string {
		f := map[string]string{"Chart.yaml": "apiVersion: v2\nname: app\nversion: " + version + "\n"}
		for name, text := range more {
			f["templates/"+name+".yaml"] = text
		}
		return f
	}
	service := func(name, spec string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {" + spec + "}\n"
	}
	job := func(image string) string {
		return strings.ReplaceAll(parts["templates/job.yaml"], "job:1", image)
	}
	for name, c := range map[string]struct {
		before, after map[string]string
		onEvent       func(b *fixture, e task.Event)
	}{
		"a namespace that it makes": {
			map[string]string{},
			map[string]string{
				"a": "apiVersion: v1\nkind: Namespace\nmetadata: {name: '{{ .Release.Namespace }}-made'}\n",
				"b": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: inside, namespace: '{{ .Release.Namespace }}-made'}\n",
			},
			nil,
		},
		"a hook that is deleted first": {
			map[string]string{"h": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: h, annotations: {helm.sh/hook: 'pre-install,pre-upgrade'}}\nimmutable: true\ndata: {a: '1'}\n"},
			map[string]string{"h": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: h, annotations: {helm.sh/hook: 'pre-install,pre-upgrade'}}\nimmutable: true\ndata: {a: '2'}\n"},
			nil,
		},
		"an object that a hook deletes": {
			map[string]string{"job": job("job:1")},
			map[string]string{
				"job": job("job:2"), "hook": operatorHook("remover", testenv.RunForAnnotation+": 5s"),
				"account": "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: remover, annotations: {helm.sh/hook: pre-upgrade, helm.sh/hook-weight: '-1'}}\n",
			},
			func(b *fixture, e task.Event) {
				if strings.Contains(e.Text, "running hook job/remover") {
					b.kubectl("delete", "job", "job")
				}
			},
		},
		"a pod with an account of its own": {
			map[string]string{},
			map[string]string{
				"account": "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: runner}\n",
				"pod":     "apiVersion: v1\nkind: Pod\nmetadata: {name: pod}\nspec: {serviceAccountName: runner, containers: [{name: main, image: example.test/pod}]}\n",
			},
			nil,
		},
		"a port that another service gives up": {
			map[string]string{"a": service("a", "type: NodePort, ports: [{port: 80, nodePort: 31777}]")},
			map[string]string{
				"a": service("a", "type: ClusterIP, ports: [{port: 80}]"),
				"b": service("b", "type: NodePort, ports: [{port: 80, nodePort: 31777}]"),
			},
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			one := b.release("1.0.0", chart("1.0.0", c.before), "")
			b.up(one, nil)
			if c.onEvent != nil {
				b.onEvent = func(e task.Event) { c.onEvent(b, e) }
			}
			b.up(b.release("2.0.0", chart("2.0.0", c.after), ""), one)
			b.helm("uninstall", releaseName, "--no-hooks")
		})
	}
}

// TestSureRefusals tells answers of the API that are sure to come again from others.
func TestSureRefusals(t *testing.T) {
	info := func(kind, name string) *resource.Info {
		gvk := schema.GroupVersionKind{Version: "v1", Kind: kind}
		return &resource.Info{Name: name, Namespace: "here", Mapping: &meta.RESTMapping{GroupVersionKind: gvk, Scope: meta.RESTScopeNamespace}}
	}
	answer := func(code int32, text string) error {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Code: code, Message: text}}
	}
	quota := func(text string) error {
		return answer(http.StatusForbidden, `x "y" is forbidden: exceeded quota: q, `+text)
	}
	const (
		invalid   = http.StatusUnprocessableEntity
		forbidden = http.StatusForbidden
		immutable = `Job.batch "job" is invalid: spec.template: field is immutable`
		webhook   = `admission webhook "a.example.test" denied the request: `
	)
	plain := surroundings{names: map[string]int{"own": 1, "db": 1}, namespaces: map[string]bool{}}
	with := func(change func(*surroundings)) surroundings {
		s := plain
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		s      surroundings
		err    error
		hook   bool
		exists bool
		want   bool
	}{
		"taken":                       {plain, nil, false, true, false},
		"no answer":                   {plain, errors.New("connection refused"), false, true, false},
		"cannot change":               {plain, answer(invalid, immutable), false, true, true},
		"bad type":                    {plain, answer(http.StatusBadRequest, "cannot unmarshal number"), false, false, true},
		"no dry run":                  {plain, answer(http.StatusBadRequest, webhook+"x does not support dry run"), false, true, false},
		"too many":                    {plain, answer(http.StatusTooManyRequests, "later"), false, true, false},
		"too slow":                    {plain, answer(http.StatusGatewayTimeout, "timeout"), false, true, false},
		"conflict":                    {plain, answer(http.StatusConflict, "already exists"), false, false, false},
		"webhook is away":             {plain, answer(http.StatusInternalServerError, "failed calling webhook"), false, true, false},
		"webhook":                     {plain, answer(forbidden, webhook+"no"), false, true, true},
		"webhook misses another":      {plain, answer(forbidden, webhook+`deployment "db" not found`), false, true, false},
		"webhook misses what is not":  {plain, answer(forbidden, webhook+`deployment "other" not found`), false, true, true},
		"webhook misses its namesake": {with(func(s *surroundings) { s.names = map[string]int{"own": 2} }), answer(forbidden, webhook+`deployment "own" not found`), false, true, false},
		"webhooks change":             {with(func(s *surroundings) { s.admission = true }), answer(forbidden, webhook+"no"), false, true, false},
		"policy after a hook":         {with(func(s *surroundings) { s.runs = true }), answer(invalid, "ValidatingAdmissionPolicy 'p' denied request"), false, true, false},
		"namespace":                   {plain, answer(http.StatusNotFound, `namespaces "here" not found`), false, false, true},
		"own namespace":               {with(func(s *surroundings) { s.namespaces = map[string]bool{"here": true} }), answer(http.StatusNotFound, `namespaces "here" not found`), false, false, false},
		"vanished":                    {plain, answer(http.StatusNotFound, `configmaps "own" not found`), false, true, false},
		"account of the release":      {plain, answer(forbidden, `pods "own" is forbidden: error looking up service account here/db: serviceaccount "db" not found`), false, false, false},
		"no such account":             {plain, answer(forbidden, `pods "own" is forbidden: error looking up service account here/x: serviceaccount "x" not found`), false, false, true},
		"pod security":                {plain, answer(forbidden, `pods "own" is forbidden: violates PodSecurity "restricted:latest": privileged`), false, false, true},
		"namespace goes":              {plain, answer(forbidden, "because it is being terminated"), false, false, false},
		"too many objects":            {plain, quota("requested: configmaps=1, used: configmaps=3, limited: configmaps=3"), false, false, true},
		"removed before":              {with(func(s *surroundings) { s.frees = true }), quota("requested: configmaps=1, used: configmaps=3, limited: configmaps=3"), false, false, false},
		"port is removed before":      {with(func(s *surroundings) { s.frees = true }), answer(invalid, "provided port is already allocated"), false, false, false},
		"hook frees":                  {plain, quota("requested: configmaps=1, used: configmaps=3, limited: configmaps=3"), true, false, false},
		"quota changes":               {with(func(s *surroundings) { s.limits = true }), quota("requested: configmaps=1, used: configmaps=3, limited: configmaps=3"), false, false, false},
		"a record may go":             {plain, quota("requested: secrets=1, used: secrets=3, limited: secrets=3"), false, false, false},
		"pods may end":                {plain, quota("requested: pods=1,cpu=1, used: pods=3,cpu=3, limited: pods=3,cpu=3"), false, false, false},
		"never fits":                  {plain, quota("requested: requests.cpu=1500m, used: requests.cpu=0, limited: requests.cpu=1"), false, false, true},
		"port":                        {plain, answer(invalid, "provided port is already allocated"), false, false, true},
	} {
		if got := c.s.refuses(c.err, info("ConfigMap", "own"), c.hook, c.exists); got != c.want {
			t.Errorf("%s: sure to be refused: %v", name, got)
		}
	}
	if plain.refuses(answer(forbidden, "user is attempting to grant rights"), info("RoleBinding", "own"), false, false) {
		t.Error("a binding is refused whose role may change")
	}
	for text, want := range map[string]bool{
		hook("a", "pre-upgrade", ""):                             false,
		operatorHook("a", ""):                                    true,
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n": false,
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {serviceAccountName: default}\n": false,
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {serviceAccount: operator}\n":    true,
	} {
		if got := mayChangeCluster(&release.Hook{Manifest: text}); got != want {
			t.Errorf("may change the cluster: %v:\n%s", got, text)
		}
	}
}
