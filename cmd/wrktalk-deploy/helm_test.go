package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// chartRelease is a Helm release on the real API.
type chartRelease struct {
	t  *testing.T
	k  *testenv.Kubernetes
	ns string
}

func newChartRelease(t *testing.T) *chartRelease {
	t.Helper()
	k := testenv.SharedKubernetes(t)
	return &chartRelease{t: t, k: k, ns: k.Namespace(t)}
}

// release has one Deployment, whose only pod is replaced, not rolled, and
// carries an annotation.
func (c *chartRelease) release(version, annotation string) *protocol.Release {
	c.t.Helper()
	dir := c.t.TempDir()
	for name, text := range map[string]string{
		"Chart.yaml": "apiVersion: v2\nname: app\nversion: " + version + "\n",
		"templates/web.yaml": fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  strategy: {type: Recreate}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {version: %q, %s}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: example.test/web}]}
`, version, annotation),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			c.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			c.t.Fatal(err)
		}
	}
	return &protocol.Release{ArtifactID: version, Version: version, SHA256: "abcdef" + version, PayloadDir: dir}
}

func (c *chartRelease) job(action protocol.Action, rel, prev *protocol.Release) protocol.Job {
	return protocol.Job{
		Schema: protocol.Schema, Action: action, TaskID: "t-" + task.ID(rel.Version), Kind: task.KindDeploy, Token: "now",
		Release: *rel, Previous: prev, Timeout: limit, RestoreTimeout: limit,
		Settings: protocol.Settings{Helm: &protocol.Helm{Namespace: c.ns, Release: "app", Kubeconfig: c.k.AdminKubeconfig, HistoryMax: 10}},
	}
}

func (c *chartRelease) up(rel *protocol.Release) {
	c.t.Helper()
	if res, code := start(c.t, c.job(protocol.ActionDeploy, rel, nil)).end(); code != 0 || res == nil || !res.Succeeded {
		c.t.Fatalf("deploy %s: exit code %d, %+v", rel.Version, code, res)
	}
}

// statuses returns the history as "1 superseded, 2 deployed".
func (c *chartRelease) statuses() string {
	c.t.Helper()
	out, err := c.k.Helm("history", "app", "--namespace", c.ns, "--output", "json")
	if err != nil {
		return err.Error()
	}
	var list []struct {
		Revision int
		Status   string
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		c.t.Fatal(err)
	}
	var texts []string
	for _, r := range list {
		texts = append(texts, fmt.Sprintf("%d %s", r.Revision, r.Status))
	}
	return strings.Join(texts, ", ")
}

func (c *chartRelease) serves(version string) {
	c.t.Helper()
	got, err := c.k.Kubectl("get", "deployments", "--namespace", c.ns, "--output", "name")
	want := "deployment.apps/web\n"
	if version == "" {
		want = ""
	}
	if err != nil || got != want {
		c.t.Errorf("deployments: %q, %v; want %q", got, err, want)
	}
	if version == "" {
		return
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), limit)
	defer cancel()
	if err := c.k.AwaitServed(ctx, c.ns, "web", testenv.Served{Image: "example.test/web", Version: version, Updated: 1, Ready: 1}); err != nil {
		c.t.Errorf("release %s does not serve: %v", version, err)
	}
}

// recorded waits until the revision is recorded in status.
func (c *chartRelease) recorded(revision int, status string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), limit)
	defer cancel()
	err := c.k.Await(ctx, "/api/v1/namespaces/"+c.ns+"/secrets", fmt.Sprintf("sh.helm.release.v1.app.v%d", revision), func(o []byte) bool {
		return bytes.Contains(o, []byte(`"status":"`+status+`"`))
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

const (
	never = testenv.FailAnnotation + ": " + testenv.FailUnready
	late  = testenv.StartAfterAnnotation + ": 5s"
	later = testenv.StartAfterAnnotation + ": 20s" // than a kill that is under way
)

// TestHelmKilledThenRecovered kills wrktalk-deploy, and only it, at several
// moments. Its child must not go on, and recovery finds out what was left.
func TestHelmKilledThenRecovered(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first   bool
		before  string // annotation of the pods of the release before
		with    string // annotation of the new pods
		moment  func(c *chartRelease, p *process)
		state   string // left by the kill, "" for not looked at
		want    string // served in the end
		success bool
		touched bool
	}{
		"preflight": {
			moment: func(_ *chartRelease, p *process) { p.until(task.PhasePreflight) },
			state:  "1 deployed", want: "1.0.0", touched: true,
		},
		"applying": {
			moment: func(_ *chartRelease, p *process) { p.until(task.PhaseApplying) },
			want:   "1.0.0", touched: true,
		},
		"recorded": {
			moment: func(c *chartRelease, p *process) { p.until(task.PhaseApplying); c.recorded(2, "pending-upgrade") },
			state:  "1 deployed, 2 pending-upgrade", want: "1.0.0", touched: true,
		},
		"waiting": {
			moment: func(_ *chartRelease, p *process) { p.until(task.PhaseWaiting) },
			state:  "1 deployed, 2 pending-upgrade", want: "1.0.0", touched: true,
		},
		"restoring": {
			before: later,
			moment: func(_ *chartRelease, p *process) {
				p.until(task.PhaseWaiting)
				p.signal(syscall.SIGTERM)
				p.until(task.PhaseRestoring)
				p.until(task.PhaseWaiting)
			},
			state: "1 deployed, 2 failed, 3 pending-rollback", want: "1.0.0", touched: true,
		},
		"done": {
			with: "a: b",
			moment: func(c *chartRelease, p *process) {
				p.until(task.PhaseApplying)
				p.signal(syscall.SIGSTOP) // its child goes on; it would say that it is done
				c.recorded(2, "deployed")
			},
			state: "1 superseded, 2 deployed", want: "2.0.0", success: true, touched: true,
		},
		"first installation": {
			first:  true,
			moment: func(_ *chartRelease, p *process) { p.until(task.PhaseWaiting) },
			state:  "1 pending-install", want: "", touched: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newChartRelease(t)
			one := r.release("1.0.0", cmp.Or(c.before, late))
			var prev *protocol.Release
			if !c.first {
				r.up(one)
				prev = one
			}
			two := r.release("2.0.0", cmp.Or(c.with, never))
			killed := start(t, r.job(protocol.ActionDeploy, two, prev))
			c.moment(r, killed)
			if err := killed.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if res, _ := killed.end(); res != nil {
				t.Fatalf("a killed process reported %+v", *res)
			}
			if got := r.statuses(); c.state != "" && got != c.state {
				t.Errorf("the kill left %s, not %s", got, c.state)
			}
			res, code := start(t, r.job(protocol.ActionRecover, two, prev)).end()
			if code != 0 || res == nil || res.Succeeded != c.success || res.Serving != c.want || res.Changed != c.touched {
				t.Fatalf("exit code %d, %+v", code, res)
			}
			if !c.success && !strings.Contains(res.Error, "the deployment process died") {
				t.Errorf("%+v", res)
			}
			r.serves(c.want)
			if got := r.statuses(); strings.Contains(got, "pending") {
				t.Errorf("history: %s", got)
			}
		})
	}
}

// TestHelmKilledThenNextTask has the next task find what a dead one left.
func TestHelmKilledThenNextTask(t *testing.T) {
	t.Parallel()
	r := newChartRelease(t)
	one, bad, two := r.release("1.0.0", ""), r.release("1.5.0", never), r.release("2.0.0", "")
	r.up(one)
	killed := start(t, r.job(protocol.ActionDeploy, bad, one))
	killed.until(task.PhaseWaiting)
	if err := killed.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed.end()
	if res, code := start(t, r.job(protocol.ActionDeploy, two, one)).end(); code != 0 || res == nil || !res.Succeeded || res.HelmRevision != 3 {
		t.Fatalf("exit code %d, %+v", code, res)
	}
	r.serves("2.0.0")
	if got := r.statuses(); got != "1 superseded, 2 failed, 3 deployed" {
		t.Errorf("history: %s", got)
	}
}

// TestHelmTerminated gives a deployment up in order.
func TestHelmTerminated(t *testing.T) {
	t.Parallel()
	r := newChartRelease(t)
	one := r.release("1.0.0", "")
	r.up(one)
	ended := start(t, r.job(protocol.ActionDeploy, r.release("2.0.0", never), one))
	ended.until(task.PhaseWaiting)
	ended.signal(syscall.SIGTERM)
	res, code := ended.end()
	if code != 0 || res == nil || res.Succeeded || !res.Restored || res.Serving != "1.0.0" || !strings.Contains(res.Error, "interrupted") {
		t.Fatalf("exit code %d, %+v", code, res)
	}
	r.serves("1.0.0")
}

// TestHelmEndOfInput ends parent and child when the runner is gone.
func TestHelmEndOfInput(t *testing.T) {
	t.Parallel()
	r := newChartRelease(t)
	dying := start(t, r.job(protocol.ActionDeploy, r.release("1.0.0", never), nil))
	dying.until(task.PhaseWaiting)
	child := childOf(t, dying.cmd.Process.Pid)
	if err := dying.in.Close(); err != nil {
		t.Fatal(err)
	}
	if res, code := dying.end(); res != nil || code != exitFailed {
		t.Errorf("exit code %d, %+v", code, res)
	}
	if err := testenv.AwaitReadable(child, limit); err != nil {
		t.Errorf("the child lives on: %v", err)
	}
}

// childOf returns a descriptor of the only child of pid.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(lists) == 0 {
		t.Skip("the kernel does not tell a process's children")
	}
	var found []int
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(text)) {
			n, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, n)
		}
	}
	if len(found) != 1 {
		t.Fatalf("wrktalk-deploy has the children %v", found)
	}
	fd, err := unix.PidfdOpen(found[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
