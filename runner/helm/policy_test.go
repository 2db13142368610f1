package helm

import (
	"slices"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/policy"
)

// pod is a workload whose pods have spec, beside one container with c.
func pod(spec, c string) string {
	return "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {" + spec + "containers: [{name: main, image: x" + c + "}]}}}\n"
}

// TestPolicyOfObjects asks for one thing after the other: the default preset allows
// it, the restricted one names it with its place, and allows it when its key does.
func TestPolicyOfObjects(t *testing.T) {
	t.Parallel()
	restricted := policy.New(policy.PresetRestricted, [len(policy.Keys)]policy.Choice{}, policy.ParentsAllow)
	const where = `template app/templates/x.yaml: Deployment "web", spec.template.spec.`
	for _, c := range []struct {
		name, doc string
		key       policy.Key
		want      string
	}{
		{"host network", pod("hostNetwork: true, ", ""), policy.HostNamespaces, where + "hostNetwork: it shares"},
		{"host pid", pod("hostPID: true, ", ""), policy.HostNamespaces, where + "hostPID"},
		{"host port", pod("", ", ports: [{containerPort: 80, hostPort: 80}]"), policy.HostNamespaces, where + "containers[main].ports: it takes the port 80"},
		{"privileged", pod("", ", securityContext: {privileged: true}"), policy.Privileged, where + "containers[main].securityContext.privileged: it has all rights"},
		{"privileged init container", pod("initContainers: [{name: first, image: x, securityContext: {privileged: true}}], ", ""), policy.Privileged, where + "initContainers[first]"},
		{"capability", pod("", ", securityContext: {capabilities: {add: [CHOWN, SYS_ADMIN]}}"), policy.Capabilities, "SYS_ADMIN"},
		{"seccomp", pod("securityContext: {seccompProfile: {type: Unconfined}}, ", ""), policy.Unconfined, where + "securityContext.seccompProfile"},
		{"proc", pod("", ", securityContext: {procMount: Unmasked}"), policy.Unconfined, "procMount"},
		{"annotation", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, annotations: {container.apparmor.security.beta.kubernetes.io/main: unconfined}}\nspec: {containers: [{name: main, image: x}]}\n", policy.Unconfined, `Pod "web", metadata.annotations`},
		{"sysctl", pod("securityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}]}, ", ""), policy.Sysctls, "net.core.somaxconn"},
		{"gpu", pod("", ", resources: {limits: {nvidia.com/gpu: 1, cpu: 1}}"), policy.Devices, "nvidia.com/gpu"},
		{"block device", pod("", ", volumeDevices: [{name: a, devicePath: /dev/x}]"), policy.Devices, "volumeDevices"},
		{"host path", pod("volumes: [{name: data, hostPath: {path: /srv/x}}], ", ""), policy.HostPaths, where + "volumes[data].hostPath: /srv/x is outside"},
		{"socket", pod("volumes: [{name: s, hostPath: {path: /run/containerd/containerd.sock}}], ", ""), policy.EngineSocket, "engine's socket"},
		{"volume", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\nspec: {template: {spec: {containers: [], volumes: [{name: d, hostPath: {path: /srv}}]}}}\n", policy.HostPaths, "/srv"},
		{"in a custom resource", "apiVersion: example.test/v1\nkind: Rollout\nmetadata: {name: web}\nspec: {x: [{podTemplate: {spec: {hostIPC: true, containers: [{name: a}]}}}]}\n", policy.HostNamespaces, `Rollout "web", spec.x[0].podTemplate.spec.hostIPC`},
		{"in a list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: web}\n  spec: {hostPID: true, containers: [{name: a}]}\n", policy.HostNamespaces, `Pod "web", spec.hostPID`},
		{"cluster-wide", "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: role}\n", policy.ClusterObjects, `ClusterRole "role": it belongs to no namespace`},
		{"own kind", "apiVersion: example.test/v1\nkind: Planet\nmetadata: {name: role}\n", policy.ClusterObjects, `Planet "role": it belongs to no namespace`},
		{"other namespace", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web, namespace: kube-system}\n", policy.OtherNamespaces, `ConfigMap "web", metadata.namespace: it is in namespace "kube-system"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := func(rules policy.Rules) error {
				p := policyCheck{
					rules: rules, namespace: "web", account: "web/agent", ownKinds: []crd{{kind: "Planet", scope: "Cluster"}},
					objects: map[[2]string]scope{{"ClusterRole", "role"}: {}},
				}
				p.document("template app/templates/x.yaml", c.doc)
				return p.err()
			}
			if err := check(policy.Rules{}); err != nil {
				t.Errorf("by default: %v", err)
			}
			if err := check(restricted); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "policy."+string(c.key)+" refuses") {
				t.Errorf("restricted: %v, want %q", err, c.want)
			}
			others := restricted
			others.Refused = slices.DeleteFunc(slices.Clone(others.Refused), func(k policy.Key) bool { return k == c.key })
			if c.key == policy.EngineSocket {
				others.AllowedPaths = []string{"/run/containerd"}
			}
			if err := check(others); err != nil {
				t.Errorf("with its key on allow: %v", err)
			}
			if c.key == policy.HostPaths {
				if err := check(policy.Rules{Own: []string{"/srv"}}); err == nil || !strings.Contains(err.Error(), "the agent's own") {
					t.Errorf("of the agent's own path: %v", err)
				}
			}
		})
	}
}

// TestAgentsAccount lets a pod run as the agent's service account only when the
// release brings that.
func TestAgentsAccount(t *testing.T) {
	t.Parallel()
	as := pod("serviceAccountName: agent, ", "")
	const account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: agent}\n"
	for _, c := range []struct {
		account string
		docs    []string
		refused bool
	}{
		{"web/agent", []string{as}, true},
		{"web/agent", []string{as, account}, false},
		{"other/agent", []string{as}, false},
		{"", []string{as}, false},
	} {
		p := policyCheck{namespace: "web", account: c.account, objects: map[[2]string]scope{}}
		for _, doc := range c.docs {
			p.document("template x", doc)
		}
		if err := p.err(); (err != nil) != c.refused {
			t.Errorf("%s, %d documents: %v", c.account, len(c.docs), err)
		}
	}
}

// TestPolicyRefusesRelease: nothing is changed, and a release that serves stays one
// to go back to after the policy was tightened.
func TestPolicyRefusesRelease(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	role := map[string]string{"templates/role.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: '{{ .Release.Namespace }}'}\nrules: []\n"}
	job := b.job(b.release("1.0.0", files("1.0.0", role), ""), nil)
	job.Policy.Refused = []policy.Key{policy.ClusterObjects}
	b.refusedWith(b.run(job), `template app/templates/role.yaml: ClusterRole "`+b.ns+`": it belongs to no namespace, which policy.cluster_objects refuses`)
	b.nothing()
}
