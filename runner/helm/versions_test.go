package helm

import (
	"fmt"
	"strings"
	"testing"
)

// TestAPIVersionsThatAreGone upgrades, and rolls back to, a revision whose manifest
// holds objects of API versions that the cluster stopped to serve.
func TestAPIVersionsThatAreGone(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	group := b.ns + ".example.test"
	kind := func(name, old string) string {
		return fmt.Sprintf(`apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[2]ss.%[1]s}
spec:
  group: %[1]s
  scope: Namespaced
  names: {kind: %[3]s, plural: %[2]ss, singular: %[2]s}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - {name: v1alpha1, served: %[4]s, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`, group, name, strings.ToUpper(name[:1])+name[1:], old)
	}
	crds := []string{"things." + group, "relics." + group}
	for _, old := range []string{"thing", "relic"} {
		if err := b.k.Apply(b.ns, kind(old, "true")); err != nil {
			t.Fatal(err)
		}
		b.kubectl("wait", "--for", "condition=Established", "customresourcedefinition/"+old+"s."+group, "--timeout", limit.String())
	}
	t.Cleanup(func() {
		if _, err := b.k.Kubectl("delete", "customresourcedefinition", crds[0]); err != nil {
			t.Error(err)
		}
	})
	// Served is not known to every part of the API at once.
	served := func(version string, want bool) {
		for b.t.Context().Err() == nil {
			out, err := b.k.Do("GET", "/apis/"+group+"/"+version, "")
			if (err == nil && strings.Contains(string(out), `"Thing"`)) == want {
				return
			}
		}
	}
	served("v1alpha1", true)
	chart := func(version, thing, more string) map[string]string {
		return files(version, map[string]string{
			"templates/thing.yaml": "apiVersion: " + group + "/" + thing + "\nkind: Thing\nmetadata: {name: one}\nspec: {of: {{ .Chart.Version | quote }}}\n",
			"templates/relic.yaml": more,
		})
	}
	one := b.release("1.0.0", chart("1.0.0", "v1alpha1", "apiVersion: "+group+"/v1alpha1\nkind: Relic\nmetadata: {name: one}\n"), "")
	b.up(one, nil)
	if err := b.k.Apply(b.ns, kind("thing", "false")); err != nil {
		t.Fatal(err)
	}
	b.kubectl("delete", "customresourcedefinition", crds[1])
	served("v1alpha1", false)

	two := b.release("2.0.0", chart("2.0.0", "v1", ""), "")
	b.up(two, one)
	spec := func() string {
		return b.kubectl("get", "things.v1."+group, "one", "--output", "jsonpath={.spec.of}")
	}
	if got := spec(); got != "2.0.0" {
		t.Errorf("it is of %q", got)
	}
	if !b.said("", "thing/one is of API version "+group+"/v1alpha1, which the cluster does not have any more: it is taken to be of "+group+"/v1") ||
		!b.said("", "relic/one is of API version "+group+"/v1alpha1, which the cluster does not have any more, nor another one of its kind: it is passed over") {
		t.Errorf("%+v", b.events)
	}
	if res := b.run(b.rollbackJob(one, two)); !res.Succeeded || spec() != "1.0.0" {
		t.Errorf("%+v; it is of %s", res, spec())
	}
	// What is new must be of a version that is there.
	b.refusedWith(b.run(b.job(b.release("3.0.0", chart("3.0.0", "v1alpha1", ""), ""), one)), `no matches for kind "Thing"`)
}
