package helm

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// TestLogsAreQuoted has the pod run on a node of its own, whose kubelet is the
// test: the API fetches logs there. Its taint keeps the pods of other tests away, which
// would be deleted with the node.
func TestLogsAreQuoted(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	kubelet := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.HasPrefix(r.URL.Path, "/containerLogs/"+b.ns+"/web-") || !strings.HasSuffix(r.URL.Path, "/main"):
			http.NotFound(w, r)
		case r.URL.Query().Get("previous") != "true":
			fmt.Fprint(w, "")
		default:
			for i := range 30 {
				fmt.Fprintf(w, "line %d\n", i)
			}
			fmt.Fprint(w, "cannot log in as app with hunter22\r\n\n")
		}
	}))
	kubelet.TLS = &tls.Config{}
	kubelet.StartTLS()
	defer kubelet.Close()
	port := kubelet.Listener.Addr().(*net.TCPAddr).Port
	node := b.ns
	_, err := b.k.Do("POST", "/api/v1/nodes", fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q},
		"spec":{"taints":[{"key":"wrktalk.test/own","effect":"NoSchedule"}]},"status":{
		"addresses":[{"type":"InternalIP","address":"127.0.0.1"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":%d}},
		"conditions":[{"type":"Ready","status":"True","reason":"Test","message":"","lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:00:00Z"}],
		"allocatable":{"cpu":"16","memory":"64Gi","pods":"10"},"capacity":{"cpu":"16","memory":"64Gi","pods":"10"}}}`, node, port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := b.k.Do("DELETE", "/api/v1/nodes/"+node, ""); err != nil {
			t.Error(err)
		}
	}()
	chart := files("1.0.0", nil)
	chart["templates/web.yaml"] = strings.Replace(chart["templates/web.yaml"], "    spec:\n", "    spec:\n      nodeName: "+node+"\n", 1)
	res := b.expire(b.job(b.release("1.0.0", chart, failing(testenv.FailCrash)+"password: hunter22\n"), nil), notReady, crashed)
	failsWith(t, res, "keeps ending: exit code 1", "(it said last: cannot log in as app with ${")
	if n := len(res.LogTail); n != deploy.TailLines || res.LogTail[0] != "line 11" || !strings.HasPrefix(res.LogTail[n-1], "cannot log in as app with ${") {
		t.Errorf("%q", res.LogTail)
	}
}

// TestCustomResourcesAreNamed has a custom resource say what it waits for. Helm does
// not wait for it, but what Helm waits for may.
func TestCustomResourcesAreNamed(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	group := b.ns + ".example.test"
	more := map[string]string{
		"crds/thing.yaml": customKind(group),
		"templates/thing.yaml": "apiVersion: " + group + "/v1\nkind: Thing\nmetadata: {name: one}\n" +
			"status: {conditions: [{type: Ready, status: 'False', reason: Waits, message: 'no licence for {{ .Values.password }}'}]}\n",
	}
	res := b.expire(b.job(b.release("1.0.0", files("1.0.0", more), failing(testenv.FailCrash)+"password: hunter22\n"), nil), "thing/one not ready", crashed)
	failsWith(t, res, `deployment "web" is 0/1 ready: pod "web-`, `; thing "one" is not ready: no licence for ${`)
	if !b.said(task.PhaseWaiting, "waiting until 1 object is ready") {
		t.Error("what Helm does not wait for counts")
	}
	b.kubectl("delete", "customresourcedefinition", "things."+group)
}

// TestReadinessOfReplicas waits for new pods, not for those of the release before
// to end.
func TestReadinessOfReplicas(t *testing.T) {
	t.Parallel()
	inProgress := func(reason string) *status.Result {
		return &status.Result{Status: status.InProgressStatus, Message: reason, Conditions: []status.Condition{{Reason: reason}}}
	}
	for name, c := range map[string]struct {
		ready, want int
		computed    *status.Result
		is          readiness
	}{
		"too few":              {1, 2, inProgress("LessReady"), readiness{text: "1/2 ready"}},
		"pods are to end":      {2, 2, inProgress("ExtraPods"), readiness{ready: true, text: "2/2 ready", why: "ExtraPods"}},
		"too few and to end":   {1, 2, inProgress("ExtraPods"), readiness{text: "1/2 ready"}},
		"not available":        {2, 2, inProgress("LessAvailable"), readiness{text: "2/2 ready", why: "LessAvailable"}},
		"the deadline is over": {2, 2, &status.Result{Status: status.FailedStatus, Message: "m"}, readiness{text: "2/2 ready", why: "m"}},
	} {
		r := readiness{}
		r.count(c.ready, c.want, c.computed)
		if r != c.is {
			t.Errorf("%s: %+v, want %+v", name, r, c.is)
		}
	}
}

func TestAssess(t *testing.T) {
	k := &cluster{report: deploy.NewReport(io.Discard, nil)}
	waiting := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	ended := func(code int32, reason string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason}}
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	pod := func(statuses ...corev1.ContainerStatus) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: statuses}}
	}
	unscheduled := pod()
	unscheduled.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/3 nodes are available"}}
	evicted := pod()
	evicted.Status.Phase, evicted.Status.Reason, evicted.Status.Message = corev1.PodFailed, "Evicted", "the node was low on memory"
	initial := pod(corev1.ContainerStatus{Name: "main", State: waiting("PodInitializing", "")})
	initial.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "migrate", RestartCount: 2, State: waiting("CrashLoopBackOff", ""), LastTerminationState: ended(3, "Error")}}
	for name, c := range map[string]struct {
		pod       *corev1.Pod
		want      string
		container string
		previous  bool
	}{
		"nothing yet":  {pod(), "is not ready", "", false},
		"starting":     {pod(corev1.ContainerStatus{Name: "a", State: waiting("ContainerCreating", "")}), "is not ready", "", false},
		"unscheduled":  {unscheduled, "cannot be scheduled: 0/3 nodes are available", "", false},
		"evicted":      {evicted, "failed (Evicted): the node was low on memory", "", false},
		"image":        {pod(corev1.ContainerStatus{Name: "a", State: waiting("ErrImagePull", "not found")}), `container "a" cannot start (ErrImagePull): not found`, "", false},
		"config":       {pod(corev1.ContainerStatus{Name: "a", State: waiting("CreateContainerConfigError", `secret "x" not found`)}), `container "a" cannot start (CreateContainerConfigError): secret "x" not found`, "", false},
		"crash":        {pod(corev1.ContainerStatus{Name: "a", RestartCount: 4, State: waiting("CrashLoopBackOff", ""), LastTerminationState: ended(2, "Error")}), `container "a" keeps ending: exit code 2, restarted 4 times`, "a", true},
		"memory":       {pod(corev1.ContainerStatus{Name: "a", State: ended(137, "OOMKilled")}), `container "a" ended: exit code 137 (OOMKilled)`, "a", false},
		"unready":      {pod(corev1.ContainerStatus{Name: "a", State: running}), `container "a" runs but is not ready`, "a", false},
		"init":         {initial, `container "migrate" keeps ending: exit code 3, restarted 2 times`, "migrate", true},
		"worst counts": {pod(corev1.ContainerStatus{Name: "a", State: running}, corev1.ContainerStatus{Name: "b", State: ended(1, "Error")}), `container "b" ended: exit code 1`, "b", false},
	} {
		t.Run(name, func(t *testing.T) {
			got := k.assess(c.pod)
			if got == nil || got.sentence != c.want || got.container != c.container || got.previous != c.previous || got.pod != "p" {
				t.Errorf("%+v", got)
			}
		})
	}
	ready := pod(corev1.ContainerStatus{Name: "a", State: ended(1, "")})
	ready.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if got := k.assess(ready); got != nil {
		t.Errorf("a ready pod: %+v", got)
	}
}
