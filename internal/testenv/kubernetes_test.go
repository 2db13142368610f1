package testenv_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// workload returns a Deployment or a Job whose pods carry annotations.
func workload(kind, name string, annotations map[string]string) string {
	notes, _ := json.Marshal(annotations)
	meta := fmt.Sprintf(`"metadata":{"annotations":%s,"labels":{"app":%q}}`, notes, name)
	spec := `"spec":{"containers":[{"name":"app","image":"example.test/app:1"}]`
	if kind == "Job" {
		return fmt.Sprintf(`{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":%q},
			"spec":{"backoffLimit":0,"template":{%s,%s,"restartPolicy":"Never"}}}}`, name, meta, spec)
	}
	return fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":%q},
		"spec":{"replicas":2,"selector":{"matchLabels":{"app":%q}},"template":{%s,%s}}}}`, name, name, meta, spec)
}

// pod is what these tests look at in a pod.
type pod struct {
	Metadata struct{ Name string }
	Status   struct {
		Phase             string
		ContainerStatuses []struct {
			Ready        bool
			RestartCount int
			State        struct {
				Waiting    *struct{ Reason string }
				Terminated *struct{ ExitCode int }
			}
		}
	}
}

func (p pod) String() string {
	s := p.Status.Phase
	for _, c := range p.Status.ContainerStatuses {
		switch {
		case c.State.Waiting != nil:
			s += "/" + c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s += fmt.Sprintf("/exit %d", c.State.Terminated.ExitCode)
		default:
			s += fmt.Sprintf("/ready %t", c.Ready)
		}
	}
	return s
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestDeploymentBecomesAvailable(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	ns := k.Namespace(t)
	if err := k.Apply(ns, workload("Deployment", "web", nil)); err != nil {
		t.Fatal(err)
	}
	if err := k.Await(within(t), "/apis/apps/v1/namespaces/"+ns+"/deployments", "web", testenv.HasCondition("Available")); err != nil {
		t.Fatal(err)
	}
}

func TestPodsFailAsTheyAreTold(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	ns := k.Namespace(t)
	for fail, want := range map[string]string{
		testenv.FailCrash:     "Running/CrashLoopBackOff",
		testenv.FailImagePull: "Pending/ImagePullBackOff",
		testenv.FailUnready:   "Running/ready false",
		testenv.FailPending:   "Pending",
	} {
		t.Run(fail, func(t *testing.T) {
			if err := k.Apply(ns, workload("Deployment", fail, map[string]string{testenv.FailAnnotation: fail})); err != nil {
				t.Fatal(err)
			}
			// The scheduler reports its choice before kwok sees the pod.
			name := awaitPod(t, k, ns, fail, want)
			out, err := k.Do("GET", "/apis/apps/v1/namespaces/"+ns+"/deployments/"+fail, "")
			if err != nil {
				t.Fatal(err)
			}
			if testenv.HasCondition("Available")(out) {
				t.Errorf("the deployment of %s is available: %s", name, out)
			}
		})
	}
}

// awaitPod waits until the first pod of app is on a node and looks like want.
func awaitPod(t *testing.T, k *testenv.Kubernetes, ns, app, want string) string {
	t.Helper()
	var set struct{ Items []pod }
	if err := k.Await(within(t), "/apis/apps/v1/namespaces/"+ns+"/deployments", app, func(o []byte) bool {
		var d struct{ Status struct{ Replicas int } }
		return json.Unmarshal(o, &d) == nil && d.Status.Replicas == 2
	}); err != nil {
		t.Fatal(err)
	}
	out, err := k.Do("GET", "/api/v1/namespaces/"+ns+"/pods?labelSelector=app%3D"+app, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &set); err != nil || len(set.Items) == 0 {
		t.Fatalf("list the pods of %s: %v: %s", app, err, out)
	}
	name := set.Items[0].Metadata.Name
	if err := k.Await(within(t), "/api/v1/namespaces/"+ns+"/pods", name, func(o []byte) bool {
		var p pod
		return json.Unmarshal(o, &p) == nil && p.String() == want && testenv.HasCondition("PodScheduled")(o)
	}); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestJobsEndAsTheyAreTold(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	ns := k.Namespace(t)
	for name, c := range map[string]struct {
		annotations map[string]string
		condition   string
	}{
		"completes":  {nil, "Complete"},
		"fails":      {map[string]string{testenv.FailAnnotation: testenv.FailExit}, "Failed"},
		"takes-time": {map[string]string{testenv.StartAfterAnnotation: "50ms", testenv.RunForAnnotation: "50ms"}, "Complete"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := k.Apply(ns, workload("Job", name, c.annotations)); err != nil {
				t.Fatal(err)
			}
			if err := k.Await(within(t), "/apis/batch/v1/namespaces/"+ns+"/jobs", name, testenv.HasCondition(c.condition)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A pod that is to take an hour must not be ready, or gone, before.
func TestPodsTakeTheirTime(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	ns := k.Namespace(t)
	if err := k.Apply(ns, workload("Deployment", "slow", map[string]string{testenv.StartAfterAnnotation: "1h"})+"\n---\n"+
		workload("Deployment", "sticky", map[string]string{testenv.StopAfterAnnotation: "1h"})); err != nil {
		t.Fatal(err)
	}
	deployments := "/apis/apps/v1/namespaces/" + ns + "/deployments"
	if err := k.Await(within(t), deployments, "sticky", testenv.HasCondition("Available")); err != nil {
		t.Fatal(err)
	}
	awaitPod(t, k, ns, "slow", "Pending")
	sticky := awaitPod(t, k, ns, "sticky", "Running/ready true")
	if _, err := k.Do("DELETE", "/api/v1/namespaces/"+ns+"/pods/"+sticky, ""); err != nil {
		t.Fatal(err)
	}
	out, err := k.Do("GET", "/api/v1/namespaces/"+ns+"/pods/"+sticky, "")
	if err != nil || !bytes.Contains(out, []byte("deletionTimestamp")) {
		t.Fatalf("get the pod that is to stay: %v: %s", err, out)
	}
	if _, err := k.Kubectl("delete", "pod", sticky, "--namespace", ns, "--force", "--grace-period=0"); err != nil {
		t.Error(err)
	}
}

func TestUnprivilegedAccountIsRefused(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	ns := k.Namespace(t)
	path, err := k.ServiceAccountKubeconfig(ns, "deployer")
	if err != nil {
		t.Fatal(err)
	}
	list := []string{"--kubeconfig", path, "get", "secrets"}
	if out, err := k.Kubectl(list...); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Fatalf("list secrets without a role: %v: %s", err, out)
	}
	if err := k.Apply(ns, `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":"reader"},
		"rules":[{"apiGroups":[""],"resources":["secrets"],"verbs":["list"]}]}
---
{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"reader"},
	"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"reader"},
	"subjects":[{"kind":"ServiceAccount","name":"deployer"}]}`); err != nil {
		t.Fatal(err)
	}
	// The server's own view of roles follows with a delay, and can only be asked.
	for ctx := within(t); ; {
		if _, err = k.Kubectl(list...); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		t.Errorf("list secrets with a role: %v", err)
	}
	if out, err := k.Kubectl("--kubeconfig", path, "get", "pods"); err == nil {
		t.Errorf("list pods, which the role does not allow: %s", out)
	}
}

func TestRefusalsTellTheirReason(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	_, err := k.Do("GET", "/api/v1/namespaces/missing", "")
	var refused *testenv.KubernetesError
	if !errors.As(err, &refused) || refused.Code != 404 || refused.Reason != "NotFound" {
		t.Errorf("get a missing namespace: %v", err)
	}
}

func TestKubeconfigLeadsThroughProxy(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	proxy := testenv.NewProxy(t, strings.TrimPrefix(k.URL, "https://"))
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := k.Kubeconfig(path, net.JoinHostPort(proxy.Host, strconv.Itoa(proxy.Port))); err != nil {
		t.Fatal(err)
	}
	get := []string{"--kubeconfig", path, "get", "nodes", "--output", "name"}
	if out, err := k.Kubectl(get...); err != nil || out != "node/node-1\n" {
		t.Errorf("get nodes: %v: %q", err, out)
	}
	proxy.Close()
	if out, err := k.Kubectl(get...); err == nil {
		t.Errorf("get nodes after the proxy closed: %q", out)
	}
}

// chart writes a chart of one Deployment, whose pods carry {{ .Values.fail }}.
func chart(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tiny")
	for name, content := range map[string]string{
		"Chart.yaml":  "apiVersion: v2\nname: tiny\nversion: 1.0.0\nkubeVersion: '>=1.30.0'\n",
		"values.yaml": "fail: none\n",
		"templates/web.yaml": `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations: {` + testenv.FailAnnotation + `: "{{ .Values.fail }}"}
    spec: {containers: [{name: app, image: "example.test/app:1"}]}
`,
		"templates/hook.yaml": `apiVersion: batch/v1
kind: Job
metadata:
  name: migrate
  annotations: {helm.sh/hook: "pre-install,pre-upgrade", helm.sh/hook-delete-policy: before-hook-creation}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: app, image: "example.test/app:1"}]}}}
`,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestHelmWaitsForReal(t *testing.T) {
	t.Parallel()
	k := testenv.SharedKubernetes(t)
	ns, chart := k.Namespace(t), chart(t)
	helm := func(args ...string) (string, error) {
		t.Helper()
		return k.Helm(append(args, "--namespace", ns)...)
	}
	if out, err := helm("upgrade", "--install", "tiny", chart, "--wait", "--timeout", "10m"); err != nil {
		t.Fatalf("install: %v: %s", err, out)
	}
	// A short timeout only makes the failure come sooner: these pods never get ready.
	if out, err := helm("upgrade", "tiny", chart, "--wait", "--timeout", "5s", "--set", "fail=crash"); err == nil {
		t.Fatalf("upgrade to pods that crash: no error: %s", out)
	}
	if out, err := helm("rollback", "tiny", "1", "--wait", "--timeout", "10m"); err != nil {
		t.Fatalf("rollback: %v: %s", err, out)
	}
	out, err := helm("history", "tiny", "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	var history []struct {
		Revision int
		Status   string
	}
	if err := json.Unmarshal([]byte(out), &history); err != nil {
		t.Fatal(err)
	}
	want := "[{1 superseded} {2 failed} {3 deployed}]"
	if got := fmt.Sprint(history); got != want {
		t.Errorf("history is %s, want %s", got, want)
	}
}

// TestKubernetesOwner is not a test: it is the process that
// TestKubernetesDiesWithItsOwner kills.
func TestKubernetesOwner(t *testing.T) {
	t.Parallel()
	if os.Getenv("WRKTALK_TEST_OWNER") != "kubernetes" {
		return
	}
	k, err := testenv.StartKubernetes(t.Context(), testenv.KubernetesOptions{})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready", k.AdminKubeconfig)
	select {}
}

func TestKubernetesDiesWithItsOwner(t *testing.T) {
	t.Parallel()
	testenv.SharedKubernetes(t) // built, or skipped
	cmd := exec.Command(os.Args[0], "-test.run=^TestKubernetesOwner$", "-test.v")
	cmd.Env = append(os.Environ(), "WRKTALK_TEST_OWNER=kubernetes")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir := ownerDir(t, out)
	parts := processesIn(t, dir)
	if len(parts) != 5 {
		t.Errorf("%d processes run in the directory of the control plane, want 5", len(parts))
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for _, part := range parts {
		if err := testenv.AwaitReadable(int(part.Fd()), 2*time.Minute); err != nil {
			t.Fatalf("process %s outlives its owner: %v", part.Name(), err)
		}
	}
	// The next start sweeps what it left.
	k, err := testenv.StartKubernetes(t.Context(), testenv.KubernetesOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Stop()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory of a dead owner is still there: %v", err)
	}
}

// ownerDir reads until the owner says that it is ready, and where.
func ownerDir(t *testing.T, out interface{ Read([]byte) (int, error) }) string {
	t.Helper()
	var said []byte
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		said = append(said, buf[:n]...)
		if _, rest, ok := strings.Cut(string(said), "ready "); ok {
			if path, _, ok := strings.Cut(rest, "\n"); ok {
				return filepath.Dir(path)
			}
		}
		if err != nil {
			t.Fatalf("the owner ended: %s", said)
		}
	}
}

// processesIn opens the processes whose working directory is dir, as files
// that can be read from when they end.
func processesIn(t *testing.T, dir string) []*os.File {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	var found []*os.File
	for _, link := range links {
		if at, err := os.Readlink(link); err != nil || at != dir {
			continue
		}
		pid := filepath.Base(filepath.Dir(link))
		n, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(n, 0)
		if err != nil {
			t.Fatalf("open process %s: %v", pid, err)
		}
		file := os.NewFile(uintptr(fd), pid)
		t.Cleanup(func() { file.Close() })
		found = append(found, file)
	}
	return found
}
