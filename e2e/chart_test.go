package e2e

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

var update = flag.Bool("update", false, "write the plain manifests of packaging/kubernetes anew from the chart")

// agentChart is the directory of the agent's own chart.
var agentChart = filepath.Join(shipped, "wrktalk-agent")

// plain are the manifests for those who do without Helm, what stands above them, and
// the values that they are rendered with.
var plain = map[string]struct {
	header string
	args   []string
}{
	"agent.yaml": {
		`# WrkTalk Agent in the namespace that it deploys to. docs/kubernetes.md explains.
#
#   kubectl create namespace wrktalk
#   kubectl apply -n wrktalk -f secret.yaml -f agent.yaml
#
# The namespace is written nowhere below: it is the one you apply to, and it has
# to exist. The agent has no right to create it, nor any other cluster-wide one.
#
# This file is rendered from the chart beside it: change that, and run
# go test ./e2e -run TestPlainManifests -update
`,
		[]string{"--set", "image.tag=VERSION,podDisruptionBudget.enabled=false,networkPolicy.enabled=false"},
	},
	"secret.yaml": {
		`# The password of the agent's database user. Fill it in and apply it once; it is
# a file of its own, so that applying agent.yaml again never overwrites it. Keep
# the filled-in copy out of version control, or better, never write one:
#
#   kubectl create secret generic wrktalk-agent-db -n wrktalk --from-file=password=FILE
`,
		[]string{"--set", "image.tag=VERSION,db.password=change-me", "--show-only", "templates/secret.yaml"},
	},
}

// The plain manifests are the chart's. After a change, run
//
//	go test ./e2e -run TestPlainManifests -update
func TestPlainManifests(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	for file, p := range plain {
		out, err := k.Helm(append([]string{"template", "wrktalk-agent", agentChart}, p.args...)...)
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		text.WriteString(p.header)
		for line := range strings.Lines(strings.TrimPrefix(out, "---\n")) {
			if !strings.HasPrefix(line, "# Source: ") {
				text.WriteString(line)
			}
		}
		path := filepath.Join(shipped, file)
		have, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case string(have) == text.String():
		case *update:
			if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("%s differs from the chart: run this test with -update", path)
		}
	}
}

// everything sets what the chart leaves alone by default.
const everything = `
image: {repository: registry.example.com/wrktalk-agent, digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef, pullPolicy: Always}
imagePullSecrets: [{name: registry}]
nameOverride: second
replicas: 2
db: {host: db.internal, port: 6432, existingSecret: elsewhere, secretKey: pw}
kube: {namespace: shop}
helm: {timeout: 600}
env: {WRKTALK_AGENT_DB_SSL_MODE: verify-full, WRKTALK_AGENT_DB_MAX_CONNS: 4, WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER: haproxy}
extraVolumes: [{name: ca, configMap: {name: ca}}]
extraVolumeMounts: [{name: ca, mountPath: /etc/wrktalk-agent/ca}]
serviceAccount: {create: false, name: mine, annotations: {a: b}}
rbac: {extraRules: [{apiGroups: [cert-manager.io], resources: [certificates], verbs: [get, create, patch, delete]}]}
state: {existingClaim: state}
podSecurityContext: {runAsUser: null, runAsGroup: null, fsGroup: null}
networkPolicy:
  from: [{namespaceSelector: {matchLabels: {name: monitoring}}}]
  egress: [{ports: [{port: 53, protocol: UDP}, {port: 6432}, {port: 443}]}]
podAnnotations: {a: b}
podLabels: {team: platform}
priorityClassName: system-cluster-critical
nodeSelector: {disk: ssd}
tolerations: [{operator: Exists}]
affinity: {nodeAffinity: {}}
topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]
`

// The chart is sound, misspelt values are refused, the API takes all that it can be
// set to, and as it is it comes up where Pod Security enforces its strictest level.
func TestChart(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	ns := k.Namespace(t)
	if out, err := k.Helm("lint", "--strict", agentChart); err != nil {
		t.Errorf("helm lint: %v\n%s", err, out)
	}
	for _, set := range []string{"db.hots=x", "replica=2", "helm.timeout=soon", "env.WRKTALK_AGENT_DB_PASSWORD=x", "podSecurityContext.runAsUser=0"} {
		if _, err := k.Helm("template", "x", agentChart, "--set", "image.tag=v1,"+set); err == nil || !strings.Contains(err.Error(), "schema") {
			t.Errorf("%s: %v", set, err)
		}
	}
	if _, err := k.Helm("template", "x", agentChart); err == nil || !strings.Contains(err.Error(), "image.tag: none is published yet") {
		t.Errorf("without an image: %v", err)
	}
	if _, err := k.Helm("template", "wrktalk", agentChart, "--set", "image.tag=v1"); err == nil || !strings.Contains(err.Error(), "is the release of the agent itself") {
		t.Errorf("with the name of what it deploys: %v", err)
	}

	values, manifest := filepath.Join(t.TempDir(), "values.yaml"), filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(values, []byte(everything), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := k.Helm("template", "x", agentChart, "--values", values)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = k.Kubectl("apply", "--dry-run=server", "--validate=strict", "-n", ns, "-f", manifest)
	if err != nil || strings.Count(out, "(server dry run)") != 5 {
		t.Errorf("what the API says of the manifests: %v\n%s", err, out)
	}

	if _, err := k.Kubectl("label", "namespace", ns, "pod-security.kubernetes.io/enforce=restricted"); err != nil {
		t.Fatal(err)
	}
	install := []string{"upgrade", "--install", "--wait", "--timeout", patience.String(), "-n", ns, "wrktalk-agent", agentChart, "--set", "db.password=secret", "--set"}
	for _, set := range []string{"image.tag=v1", "image.tag=v2"} {
		if out, err := k.Helm(append(install, set)...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := k.Await(ctx, "/apis/apps/v1/namespaces/"+ns+"/deployments", "wrktalk-agent", testenv.HasCondition("Available")); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[string]string{
		"serviceaccount": "wrktalk-agent", "role": "wrktalk-agent", "rolebinding": "wrktalk-agent", "secret": "wrktalk-agent-db",
		"poddisruptionbudget": "wrktalk-agent", "networkpolicy": "wrktalk-agent",
	} {
		if out, err := k.Kubectl("get", kind, want, "-n", ns); err != nil {
			t.Errorf("%s %s: %v %s", kind, want, err, out)
		}
	}
}

// Registry, namespace and agent are set up as docs/kubernetes.md says, both ways.
func TestKubernetesPage(t *testing.T) {
	t.Parallel()
	testenv.Docker(t)
	w := newKubeWorld(t)
	registry := testenv.NewRegistry(t, testenv.RegistryOptions{})
	image := registry + "/wrktalk-agent:VERSION"
	t.Cleanup(func() { testenv.DockerOutput(t, "rmi", image) })
	password := w.write("password", []byte(dbPassword))
	run := func(namespace, script string) {
		t.Helper()
		script = strings.NewReplacer("-n wrktalk", "-n "+namespace, "namespace wrktalk", "namespace "+namespace).Replace(script)
		if out, err := w.kube.Script("..", script); err != nil {
			t.Fatalf("%v:\n%s\n%s", err, script, out)
		}
	}
	for _, way := range []string{
		testenv.Doc(t, "docs/kubernetes.md", "Setting up", 1, "registry.example.com", registry),
		testenv.Doc(t, "docs/kubernetes.md", "Setting up", 2),
	} {
		namespace := w.ns + "-" + strings.Fields(way)[0]
		t.Cleanup(func() { run(namespace, "kubectl delete namespace wrktalk --wait=false") })
		run(namespace, testenv.Doc(t, "docs/kubernetes.md", "Setting up", 0,
			"make image", "docker inspect "+testenv.AgentImage(t)+" >/dev/null", " wrktalk-agent:VERSION", " "+testenv.AgentImage(t),
			"registry.example.com", registry, "=FILE", "="+password))
		run(namespace, way)
	}
	config := w.write("config.json", []byte(`{"auths": {"registry.example.com": {"auth": "dTpw"}}}`))
	run(w.ns, testenv.Doc(t, "docs/kubernetes.md", "Images of a private registry", 0, "$HOME/.docker/config.json", config))
	if got := w.kubectl("run", "x", "--image=x", "--dry-run=server", "--output", "jsonpath={.spec.imagePullSecrets[*].name}"); got != "registry" {
		t.Errorf("pods pull with %q", got)
	}
	// No pod runs anything here, so the agent checks from outside, under its service account.
	out := w.script(testenv.Doc(t, "docs/kubernetes.md", "Setting up", 3, "kubectl exec -n wrktalk deployment/wrktalk-agent -- ", ""))
	if !strings.Contains(out, "Kubernetes") {
		t.Errorf("check says %s", out)
	}
}

// A right for a kind of somebody else is named as docs/kubernetes.md shows, and given as
// it says.
func TestRightForCustomKindIsGivenAsDocumented(t *testing.T) {
	t.Parallel()
	w := newKubeWorld(t)
	w.apply(map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": "certificates.cert-manager.io"},
		"spec": map[string]any{
			"group": "cert-manager.io", "scope": "Namespaced", "names": map[string]any{"plural": "certificates", "singular": "certificate", "kind": "Certificate", "listKind": "CertificateList"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{
				"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true},
			}}},
		},
	})
	w.kubectl("wait", "--for", "condition=Established", "--timeout", patience.String(), "customresourcedefinition/certificates.cert-manager.io")
	t.Cleanup(func() {
		w.kubectl("delete", "customresourcedefinition", "certificates.cert-manager.io", "--wait=false")
	})
	w.run()
	b := chart("1.0.0", "")
	b["templates/certificate.yaml"] = "apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: web}\n"
	id := w.push("1.0.0", b, "")
	want := words(testenv.Doc(t, "docs/kubernetes.md", "Rights", 0, ":wrktalk:", ":"+w.ns+":", `"wrktalk"`, `"`+w.ns+`"`))
	if r := w.deploy(id); r.Status != "failed" || !strings.Contains(r.Error, want) {
		t.Fatalf("task is %s, want %q", r.Raw, want)
	}
	if out, err := w.kube.Script(".", testenv.Doc(t, "docs/kubernetes.md", "Rights", 1, "-n wrktalk", "-n "+w.ns, "=wrktalk:", "="+w.ns+":")); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	w.awaitRight("patch", "cert-manager.io", "certificates", true)
	w.completes(w.ask("deploy", id))
}
