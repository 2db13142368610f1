package helm

import (
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// allow binds rules to the account "agent" of the fixture's namespace.
func (b *fixture) allow(rules string) {
	b.t.Helper()
	err := b.k.Apply(b.ns, `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":"agent"},"rules":[`+rules+`]}
---
{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"agent"},
 "roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"agent"},
 "subjects":[{"kind":"ServiceAccount","name":"agent"}]}`)
	if err != nil {
		b.t.Fatal(err)
	}
}

const (
	forRecords = `{"apiGroups":[""],"resources":["secrets"],"verbs":["get","list","create","update","patch","delete"]}`
	forConfig  = `{"apiGroups":[""],"resources":["configmaps"],"verbs":["get","create","patch","delete"]}`
	forWeb     = `{"apiGroups":["apps"],"resources":["deployments"],"verbs":["get","create","patch","delete"]},
		{"apiGroups":["apps"],"resources":["replicasets"],"verbs":["list"]}`
)

// TestPermissions deploys as an account with a Role, which is all it takes, and is
// told what is missing from it.
func TestPermissions(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	path, err := b.k.ServiceAccountKubeconfig(b.ns, "agent")
	if err != nil {
		t.Fatal(err)
	}
	b.kubeconfig = path
	rel := b.release("1.0.0", files("1.0.0", nil), "")
	b.refusedWith(b.run(b.job(rel, nil)), "system:serviceaccount:"+b.ns+":agent may not list secrets in namespace", "where Helm keeps its releases")

	b.allow(forRecords)
	b.await(rel, "may not create, delete, get, patch configmaps in namespace \""+b.ns+"\"", "create, delete, get, patch deployments.apps", "list replicasets.apps")

	b.allow(forRecords + "," + forConfig + "," + strings.Replace(forWeb, `"patch",`, "", 1))
	b.await(rel, "may not patch deployments.apps in namespace \""+b.ns+"\"")

	b.allow(forRecords + "," + forConfig + "," + forWeb)
	b.await(rel, "")
	b.serves("1.0.0")

	// Nobody may look at the pods; the failure is explained as far as may be.
	res := b.expire(b.job(b.release("2.0.0", files("2.0.0", nil), failing(testenv.FailCrash)), rel), notReady, crashed)
	failsWith(t, res, `deployment "web" is 0/1 ready`)
	if !res.Restored {
		t.Errorf("%+v", res)
	}

	// Without its namespace it would have to create one.
	job := b.job(rel, nil)
	job.Helm.Namespace = b.ns + "-other"
	failsWith(t, b.run(job), "may not list secrets")
}

// await deploys until the API has taken notice of a new Role, which it does with
// a delay that can only be asked for.
func (b *fixture) await(rel *protocol.Release, texts ...string) {
	b.t.Helper()
	for {
		res := b.run(b.job(rel, nil))
		if texts[0] == "" && res.Succeeded {
			return
		}
		if texts[0] != "" && strings.Contains(res.Error, texts[0]) {
			b.refusedWith(res, texts...)
			return
		}
		if b.t.Context().Err() != nil || res.Changed {
			b.t.Fatalf("%+v", res)
		}
	}
}
