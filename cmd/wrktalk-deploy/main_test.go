package main

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

func TestStandardCLIKnowsTheProject(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	cli := testenv.ComposeCLI(t)
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(cli, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("docker compose %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	p.up(p.release("1.0", "serve"))
	p.serves("1.0") // and not with what the environment holds
	if out := run("ls", "--filter", "name="+p.name); !strings.Contains(out, p.name) || !strings.Contains(out, "running(1)") || !strings.Contains(out, p.workdir) {
		t.Errorf("ls: %s", out)
	}
	if out := run("-p", p.name, "ps"); !strings.Contains(out, p.name+"-web-1") || !strings.Contains(out, "healthy") {
		t.Errorf("ps: %s", out)
	}
	if out := run("-p", p.name, "logs"); !strings.Contains(out, "testapp 1.0 serves") {
		t.Errorf("logs: %s", out)
	}
	run("-p", p.name, "down")
	if out := testenv.DockerOutput(t, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+p.name); out != "" {
		t.Error("down left containers")
	}
	if out := testenv.DockerOutput(t, "network", "ls", "--quiet", "--filter", "label=com.docker.compose.project="+p.name); out != "" {
		t.Error("down left networks")
	}
}

func TestKilledThenRecovered(t *testing.T) {
	t.Parallel()
	for _, phase := range []task.Phase{task.PhasePreflight, task.PhaseApplying, task.PhaseWaiting} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			p := newProject(t)
			one, two := p.release("1.0", "serve"), p.release("2.0", "sick")
			p.up(one)
			one.PayloadDir = ""
			killed := start(t, p.job(protocol.ActionDeploy, two, one))
			killed.until(phase)
			if err := killed.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if res, _ := killed.end(); res != nil {
				t.Fatalf("a killed process reported %+v", *res)
			}
			job := p.job(protocol.ActionRecover, two, one)
			job.Timeout = brief // it will never be healthy
			res, code := start(t, job).end()
			if code != 0 || res == nil || res.Succeeded || !res.Restored || res.Serving != "1.0" || !strings.Contains(res.Error, "the deployment process died") {
				t.Fatalf("exit code %d, %+v", code, res)
			}
			p.serves("1.0")
		})
	}
}

// TestKilledWhileContainersAreReplaced kills the process at the engine's
// events, where the library is between two steps.
func TestKilledWhileContainersAreReplaced(t *testing.T) {
	t.Parallel()
	for _, event := range []string{"create", "die", "destroy", "rename"} {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			p := newProject(t)
			one, two := p.release("1.0", "serve"), p.release("2.0", "sick")
			p.up(one)
			one.PayloadDir = ""
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			api, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
			if err != nil {
				t.Fatal(err)
			}
			defer api.Close()
			seen, failed := api.Events(ctx, events.ListOptions{Filters: filters.NewArgs(
				filters.Arg("label", "com.docker.compose.project="+p.name), filters.Arg("event", event))})
			killed := start(t, p.job(protocol.ActionDeploy, two, one))
			killed.until(task.PhaseApplying)
			select {
			case <-seen:
			case err := <-failed:
				t.Fatal(err)
			}
			if err := killed.cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
			killed.end()
			job := p.job(protocol.ActionRecover, two, one)
			job.Timeout = brief
			res, code := start(t, job).end()
			if code != 0 || res == nil || !res.Restored {
				t.Fatalf("exit code %d, %+v", code, res)
			}
			p.serves("1.0")
		})
	}
}

func TestEndOfInputEndsIt(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	dying := start(t, p.job(protocol.ActionDeploy, p.release("1.0", "sick"), nil))
	dying.until(task.PhaseWaiting)
	if err := dying.in.Close(); err != nil {
		t.Fatal(err)
	}
	if res, code := dying.end(); res != nil || code != exitFailed {
		t.Errorf("exit code %d, %+v", code, res)
	}
}

func TestTerminated(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	one, two := p.release("1.0", "serve"), p.release("2.0", "sick")
	p.up(one)
	one.PayloadDir = ""
	ended := start(t, p.job(protocol.ActionDeploy, two, one))
	ended.until(task.PhaseWaiting)
	if err := ended.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	res, code := ended.end()
	if code != 0 || res == nil || res.Succeeded || !res.Restored || res.Serving != "1.0" || !strings.Contains(res.Error, "interrupted") {
		t.Fatalf("exit code %d, %+v", code, res)
	}
	p.serves("1.0")
}

func TestTerminatedTwice(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	one, two := p.release("1.0", "late"), p.release("2.0", "sick")
	p.up(one)
	one.PayloadDir = ""
	ended := start(t, p.job(protocol.ActionDeploy, two, one))
	for _, phase := range []task.Phase{task.PhaseWaiting, task.PhaseRestoring} {
		ended.until(phase)
		if err := ended.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if res, code := ended.end(); res != nil || code != exitFailed {
		t.Errorf("exit code %d, %+v", code, res)
	}
}

func TestOneAtATime(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	first := start(t, p.job(protocol.ActionDeploy, p.release("1.0", "late"), nil))
	first.until(task.PhaseWaiting)
	second := start(t, p.job(protocol.ActionDeploy, p.release("2.0", "serve"), nil))
	for m := range second.messages {
		if m.ApprovalRequest {
			break
		}
	}
	// The first one holds the lock until its container is healthy.
	if health := testenv.DockerOutput(t, "inspect", "--format", "{{.State.Health.Status}}", p.name+"-web-1"); health != "healthy" {
		t.Errorf("the second is ready to act while the container of the first is %s", health)
	}
	second.reply(protocol.Approval{Approved: true})
	for _, process := range []*process{first, second} {
		if res, _ := process.end(); res == nil || !res.Succeeded {
			t.Errorf("%+v", res)
		}
	}
	p.serves("2.0")
}

func TestApproval(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	asking := start(t, p.job(protocol.ActionDeploy, p.release("1.0", "serve"), nil))
	for m := range asking.messages {
		if m.ApprovalRequest {
			break
		}
		if m.Event != nil && m.Event.Phase == task.PhaseApplying {
			t.Fatal("acts without leave")
		}
	}
	if out := testenv.DockerOutput(t, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+p.name); out != "" {
		t.Error("acted without leave")
	}
	asking.reply(protocol.Approval{Reason: "the page cannot be shown"})
	res, code := asking.end()
	if code != 0 || res == nil || res.Changed || res.Succeeded || res.Error != "the page cannot be shown" {
		t.Errorf("exit code %d, %+v", code, res)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, doc string
		args      []string
		want      string
	}{
		{"schema", `{"schema":99}`, nil, "schema is 99"},
		{"no json", `hello`, nil, "read the job"},
		{"endless", `{"schema":1,"task_id":"` + strings.Repeat("x", maxJob), nil, "larger than"},
		{"arguments", "", []string{"--now"}, "takes no arguments"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, c.doc, c.args...)
			if res, code := p.end(); res != nil || code != exitUsage || !strings.Contains(p.output.String(), c.want) {
				t.Errorf("exit code %d, %+v", code, res)
			}
		})
	}
	helm := protocol.Job{Schema: protocol.Schema, Action: protocol.ActionDeploy, Settings: protocol.Settings{Helm: &protocol.Helm{}}}
	if res, code := start(t, helm).end(); code != 0 || res == nil || res.Changed || !strings.Contains(res.Error, "helm.release_name") {
		t.Errorf("exit code %d, %+v", code, res)
	}
	none := exec.Command("/proc/self/exe")
	none.Env = append(none.Environ(), beProgram+"=1")
	if out, err := none.CombinedOutput(); err == nil || !strings.Contains(string(out), "file descriptor 3") {
		t.Errorf("without the message descriptor: %v, %s", err, out)
	}
}
