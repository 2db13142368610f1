package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// hangingHook adds a hook whose pod does not start before it is let.
func (b bundle) hangingHook() bundle {
	b["templates/hook.yaml"] = `apiVersion: batch/v1
kind: Job
metadata: {name: schema, annotations: {helm.sh/hook: pre-upgrade}}
spec:
  template:
    metadata: {annotations: {` + testenv.FailAnnotation + `: ` + testenv.FailPending + `}}
    spec: {restartPolicy: Never, containers: [{name: main, image: registry.example/schema}]}
`
	return b
}

// A SIGKILL of the deployment's process, of its child that does Helm's work, or
// of the whole agent, after Helm has recorded its revision and while it applies
// or waits: in the end the release is deployed, never pending, and the task says
// truthfully which one.
func TestKilledDuringAHelmUpgrade(t *testing.T) {
	t.Parallel()
	w := newKubeWorld(t)
	w.run()
	w.completes(w.ask("deploy", w.push("1.0.0", chart("1.0.0", ""), "")))
	serving, mails := "1.0.0", 2
	for i, c := range []struct{ role, state, text string }{
		{"deploy", "applying", "running hook"},
		{"deploy", "waiting", "waiting until"},
		{"step", "applying", "running hook"},
		{"step", "waiting", "waiting until"},
		{"agent", "applying", "running hook"},
		{"agent", "waiting", "waiting until"},
	} {
		t.Run(c.role+" while "+c.state, func(t *testing.T) {
			outer := w.t
			w.t = t
			defer func() { w.t = outer }()
			version := fmt.Sprintf("2.%d.0", i)
			b := chart(version, testenv.FailPending)
			if c.state == "applying" {
				b.hangingHook()
			}
			task := w.ask("deploy", w.push(version, b, ""))
			w.awaitLog(task, c.text)
			if got := w.revisions(); !strings.HasSuffix(got, " pending-upgrade") {
				t.Errorf("history before the kill is %q", got)
			}
			if c.role == "agent" {
				syscall.Kill(w.pid("supervisor"), syscall.SIGKILL)
				<-w.ended
				w.t = outer // it outlives this step
				w.run()
				w.t = t
				var r row
				w.eventually("the task ends", func() bool {
					w.letPodsStart()
					r = w.row(task)
					return r.Status == "completed" || r.Status == "failed"
				})
				if r.Status != "completed" || r.Result["release_version"] != version {
					t.Errorf("task is %s", r.Raw)
				}
				serving = version
			} else {
				pid := w.pid("deploy")
				if pid == 0 {
					t.Fatal("no wrktalk-deploy runs")
				}
				if c.role == "step" {
					found := children(pid)
					if len(found) != 1 {
						t.Fatalf("wrktalk-deploy has %d children, want 1", len(found))
					}
					pid = found[0]
				}
				syscall.Kill(pid, syscall.SIGKILL)
				r := w.await(task)
				if r.Status != "failed" || r.Result["restored"] != true || r.Result["serving_version"] != serving || !strings.Contains(r.Error, "signal 9") {
					t.Errorf("task is %s", r.Raw)
				}
			}
			mails += 2
			w.settledAs(serving, mails)
		})
	}
}

// awaitLog waits until the log says text about a task.
func (w *kubeWorld) awaitLog(task, text string) {
	w.t.Helper()
	w.eventually("the log says "+text, func() bool {
		for line := range strings.Lines(w.logged()) {
			if strings.Contains(line, task[:8]) && strings.Contains(line, text) {
				return true
			}
		}
		return false
	})
}

// settledAs checks what must hold after any crash: one release serves, Helm's
// newest record says deployed and none pending, the flags agree, all mails have
// arrived, nothing is left.
func (w *kubeWorld) settledAs(version string, mails int) {
	w.t.Helper()
	w.serves(version)
	if got := w.revisions(); !strings.HasSuffix(got, " deployed") || strings.Count(got, " deployed") != 1 || strings.Contains(got, "pending") {
		w.t.Errorf("history is %q", got)
	}
	if got := w.sql(`select release_version from release_artifact where is_current`); got != version {
		w.t.Errorf("%q is flagged current, want %s", got, version)
	}
	w.mails(mails)
	w.awaitClean()
}

// An operator who stops the agent twice during an upgrade that hangs gets the
// release before back, and a task that says so.
func TestSecondStopSignalRestoresTheHelmRelease(t *testing.T) {
	t.Parallel()
	w := newKubeWorld(t)
	w.run()
	w.completes(w.ask("deploy", w.push("1.0.0", chart("1.0.0", ""), "")))
	task := w.ask("deploy", w.push("1.1.0", chart("1.1.0", testenv.FailUnready), ""))
	w.awaitState(task, "waiting")
	w.agent.Process.Signal(syscall.SIGTERM)
	w.eventually("the first signal was heard", func() bool { return strings.Contains(w.logged(), `"msg":"stopping"`) })
	if r := w.row(task); r.Status != "inProgress" {
		t.Errorf("the first signal ended the task: %s", r.Raw)
	}
	w.stop()
	r := w.row(task)
	if r.Status != "failed" || r.Result["restored"] != true || r.Result["serving_version"] != "1.0.0" || !strings.Contains(r.Error, "interrupted") {
		t.Errorf("task is %s", r.Raw)
	}
	w.run() // for what the notifier had no time for
	w.settledAs("1.0.0", 4)
}
