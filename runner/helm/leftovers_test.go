package helm

import (
	"fmt"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/release"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// policy has the API refuse, in the fixture's namespace, objects of a resource that do
// not fit a CEL expression, and waits until it does so with the given object.
func (b *fixture) policy(resource, expression, refused string) {
	b.t.Helper()
	name := b.ns + "-" + resource
	if err := b.k.Apply(b.ns, fmt.Sprintf(`apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: %[1]s}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[2]s}}
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [%[3]s]}]
  validations: [{expression: %[4]q, message: the policy does not like it}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: %[1]s}
spec: {policyName: %[1]s, validationActions: [Deny]}
`, name, b.ns, resource, expression)); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		for _, kind := range []string{"validatingadmissionpolicybinding", "validatingadmissionpolicy"} {
			if _, err := b.k.Kubectl("delete", kind, name); err != nil {
				b.t.Error(err)
			}
		}
	})
	// When the API has taken notice can only be asked for.
	for b.t.Context().Err() == nil {
		_, err := b.k.Do("POST", "/api/v1/namespaces/"+b.ns+"/"+resource+"?dryRun=All", refused)
		if err != nil && strings.Contains(err.Error(), "does not like it") {
			return
		}
	}
}

// labelled is a chart's ConfigMap with labels, and more.
func labelled(labels, more string) map[string]string {
	return map[string]string{
		"templates/config.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config, labels: {" + labels + "}}\ndata: {version: {{ .Chart.Version | quote }}}\n",
		"templates/more.yaml":   more,
	}
}

const (
	hasTeam     = "has(object.metadata.labels) && 'team' in object.metadata.labels"
	withoutTeam = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}`
)

// TestRestoredButForLeftovers has a policy, which came after release 1, want to keep a
// label that release 2 added.
func TestRestoredButForLeftovers(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", labelled("", "")), "")
	b.up(one, nil)
	b.policy("configmaps", hasTeam, withoutTeam)
	res := b.expire(b.job(b.release("2.0.0", files("2.0.0", labelled("team: a", "")), failing(testenv.FailCrash)), one), notReady, crashed)
	failsWith(t, res, "keeps ending")
	if !res.Restored || res.Serving != "1.0.0" || !strings.Contains(res.Message, "what an earlier revision left could not all be undone") {
		t.Errorf("%+v", res)
	}
	b.serves("1.0.0")
}

// TestLeftoversDoNotBlock has a policy, which came after release 1, refuse to bring that
// back and to undo release 2. Releases that the standard program would deploy are deployed
// all the same, and what stays is said.
func TestLeftoversDoNotBlock(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", labelled("", "")), "")
	b.up(one, nil)
	b.policy("configmaps", hasTeam+" && (!has(object.data) || object.data.version != '1.0.0')", withoutTeam)
	extra := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra, labels: {team: a}}\n"
	bad := b.job(b.release("2.0.0", files("2.0.0", labelled("team: a", extra)), failing(testenv.FailCrash)), one)
	res := b.expire(bad, notReady, crashed)
	failsWith(t, res, "keeps ending", "RESTORING release 1.0.0 FAILED as well", "the policy does not like it")

	// What is refused now does not say that release 1.0.0 serves.
	res = b.run(b.job(b.release("2.5.0", files("2.5.0", map[string]string{"templates/x.yaml": `{{ fail "broken" }}`}), ""), one))
	b.refusedWith(res, "broken")
	if res.Serving != "" || !res.ServingUnknown || !strings.Contains(res.Message, "what serves is not known, for revision 7 failed and was not undone") {
		t.Errorf("%+v", res)
	}

	// Without the label, which release 2 added and the policy wants.
	res = b.run(b.job(b.release("3.0.0", files("3.0.0", labelled("", "")), ""), one))
	if !res.Succeeded || b.approvals != 1 || !strings.Contains(res.Message, "what an earlier revision left could not all be undone") || !strings.Contains(res.Message, "does not like it") {
		t.Errorf("%d approvals, %+v", b.approvals, res)
	}
	b.serves("3.0.0")
	if got := b.kubectl("get", "configmaps", "extra", "--ignore-not-found", "--output", "name"); got != "" {
		t.Errorf("%s of release 2 is still there", got)
	}
	res = b.up(b.release("4.0.0", files("4.0.0", labelled("team: b", "")), ""), one)
	if strings.Contains(res.Message, "undone") {
		t.Errorf("%+v", res)
	}
	b.serves("4.0.0")
}

// TestLeftoversAreUndone has two failed releases add fields and objects, of kinds that
// the client knows and others, and the next release take them away although it was never
// restored.
func TestLeftoversAreUndone(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	group := b.ns + ".example.test"
	if err := b.k.Apply(b.ns, customKind(group)); err != nil {
		t.Fatal(err)
	}
	defer b.kubectl("delete", "customresourcedefinition", "things."+group)
	b.kubectl("wait", "--for", "condition=Established", "customresourcedefinition/things."+group, "--timeout", limit.String())
	chart := func(version, data, spec, more string) *protocol.Release {
		return b.release(version, map[string]string{
			"Chart.yaml":          "apiVersion: v2\nname: app\nversion: " + version + "\n",
			"templates/all.yaml":  "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config}\ndata: {" + data + "}\n---\napiVersion: " + group + "/v1\nkind: Thing\nmetadata: {name: one}\nspec: {" + spec + "}\n",
			"templates/more.yaml": more,
		}, "")
	}
	one := chart("1.0.0", "a: '1'", "x: 1, same: 1", "")
	b.up(one, nil)
	for i, version := range []string{"2.0.0", "3.0.0"} {
		bad := chart(version, fmt.Sprintf("a: '2', b%d: '2'", i), fmt.Sprintf("x: 2, y%d: {z: 2}, same: 1", i), fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra%d}\n", i))
		b.helm("upgrade", releaseName, bad.PayloadDir)
		b.changeAll(func(rel *release.Release) {
			switch rel.Version {
			case 1:
				rel.Info.Status = release.StatusDeployed
			default:
				byTheAgent(rel)
				rel.Info.Status = release.StatusFailed
			}
		})
	}
	b.up(chart("4.0.0", "a: '1'", "x: 1, same: 1", ""), one)
	if got := b.kubectl("get", "configmap", "config", "--output", "jsonpath={.data}"); got != `{"a":"1"}` {
		t.Errorf("the ConfigMap holds %s", got)
	}
	if got := b.kubectl("get", "things."+group, "one", "--output", "jsonpath={.spec}"); got != `{"same":1,"x":1}` {
		t.Errorf("the custom resource holds %s", got)
	}
	if got := b.kubectl("get", "configmaps", "--output", "name"); strings.Contains(got, "extra") {
		t.Errorf("there is still %s", got)
	}
}

func TestDiffering(t *testing.T) {
	object := func(s string) map[string]any {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON([]byte(`{"apiVersion":"v1","kind":"X","spec":` + s + `}`)); err != nil {
			t.Fatal(err)
		}
		return u.Object["spec"].(map[string]any)
	}
	got := fmt.Sprintf("%q", differing(object(`{"same":1,"other":1,"only":{"a":1},"list":[1],"lists":[1]}`), object(`{"same":1,"other":2,"mine":1,"list":[1],"lists":[2]}`)))
	if want := `map["list":['\x01'] "lists":"\x00" "mine":"\x00" "only":map["a":"\x00"] "other":"\x00" "same":'\x01']`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
