package helm

import (
	"bytes"
	"context"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/release"
	helmtime "helm.sh/helm/v3/pkg/time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// killCLI starts the standard CLI and kills it once the newest revision is in
// status.
func (b *fixture) killCLI(revision, status string, args ...string) {
	b.t.Helper()
	path, err := testenv.BuildHelmCLI(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(path, append(args, "--namespace", b.ns, "--kubeconfig", b.k.AdminKubeconfig, "--wait", "--timeout", "1h")...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it says that it was killed
	}()
	ctx, cancel := context.WithTimeout(b.t.Context(), limit)
	defer cancel()
	if err := b.k.Await(ctx, "/api/v1/namespaces/"+b.ns+"/secrets", "sh.helm.release.v1."+releaseName+".v"+revision, func(o []byte) bool {
		return bytes.Contains(o, []byte(`"status":"`+status+`"`))
	}); err != nil {
		b.t.Fatal(err, out.String())
	}
	if err := b.k.Await(ctx, "/apis/apps/v1/namespaces/"+b.ns+"/deployments", "web", func(o []byte) bool { return len(o) > 0 }); err != nil {
		b.t.Fatal(err)
	}
}

// records gives access to the records, as a test may need to change one.
func (b *fixture) records() *cluster {
	b.t.Helper()
	c, err := connect(&protocol.Helm{Namespace: b.ns, Release: releaseName, Kubeconfig: b.kubeconfig}, requestTimeout, deploy.NewReport(io.Discard, nil))
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// change rewrites the newest revision's record.
func (b *fixture) change(f func(*release.Release)) {
	b.t.Helper()
	h, _ := b.records().readHistory(releaseName)
	b.rewrite(h[max(0, len(h)-1):], f)
}

// changeAll rewrites the record of each revision.
func (b *fixture) changeAll(f func(*release.Release)) {
	b.t.Helper()
	h, _ := b.records().readHistory(releaseName)
	b.rewrite(h, f)
}

func (b *fixture) rewrite(h history, f func(*release.Release)) {
	b.t.Helper()
	if len(h) == 0 {
		b.t.Fatal("there is no history")
	}
	for _, rel := range h {
		rel.Labels = withLabels(rel, nil)
		f(rel)
		if err := b.records().releases.Update(rel); err != nil {
			b.t.Fatal(err)
		}
	}
}

func longAgo(rel *release.Release) {
	rel.Info.LastDeployed = helmtime.Time{Time: time.Now().Add(-2 * abandonedAfter)}
}

func byTheAgent(rel *release.Release) {
	rel.Labels = withLabels(rel, map[string]string{labelTask: "an-earlier-task", labelToken: "its-claim", labelAction: actionDeploy, labelRevision: strconv.Itoa(rel.Version)})
}

// TestPending leaves each of the three states, as somebody else, as somebody
// else long ago, and as a task of the agent.
func TestPending(t *testing.T) {
	t.Parallel()
	one := newRelease(t, "1.0.0", files("1.0.0", nil), "")
	bad := newRelease(t, "1.5.0", files("1.5.0", nil), failing(testenv.FailUnready))
	states := map[string]func(b *fixture){
		"pending-install": func(b *fixture) {
			b.killCLI("1", "pending-install", "install", releaseName, bad.PayloadDir, "-f", bad.ValuesFile)
		},
		"pending-upgrade": func(b *fixture) {
			b.helm("install", releaseName, one.PayloadDir, "--wait")
			b.killCLI("2", "pending-upgrade", "upgrade", releaseName, bad.PayloadDir, "-f", bad.ValuesFile)
		},
		"pending-rollback": func(b *fixture) {
			b.helm("install", releaseName, bad.PayloadDir, "-f", bad.ValuesFile)
			b.helm("upgrade", releaseName, one.PayloadDir, "--wait", "--reset-values")
			b.killCLI("3", "pending-rollback", "rollback", releaseName, "1")
		},
	}
	for state, leave := range states {
		for owner, c := range map[string]struct {
			make func(*release.Release)
			want string // of the refusal, "" for success
		}{
			"somebody":          {func(*release.Release) {}, "is " + state + " since "},
			"somebody long ago": {longAgo, ""},
			"agent":             {byTheAgent, ""},
		} {
			t.Run(state+" by "+owner, func(t *testing.T) {
				t.Parallel()
				b := newFixture(t)
				leave(b)
				b.change(c.make)
				if out, err := b.k.Helm("upgrade", releaseName, one.PayloadDir, "--namespace", b.ns); err == nil {
					t.Fatalf("the CLI upgrades it: %s", out)
				}
				two := b.release("2.0.0", files("2.0.0", nil), "")
				res := b.run(b.job(two, one))
				if c.want != "" {
					b.refusedWith(res, c.want, "begun by somebody else", "`helm ")
					return
				}
				if !res.Succeeded || res.Serving != "2.0.0" || b.approvals != 1 || !b.said(task.PhasePreflight, "was left "+state) {
					t.Errorf("%d approvals, %+v", b.approvals, res)
				}
				b.serves("2.0.0")
				if got := b.statuses(); strings.Contains(got, "pending") {
					t.Errorf("history: %s", got)
				}
				if state == "pending-install" && owner == "agent" && res.HelmRevision != 1 {
					t.Errorf("installed as revision %d", res.HelmRevision)
				}
			})
		}
	}
}

// TestRefusedOverPending refuses a release although an earlier one died
// half-way: what served before that comes back.
func TestRefusedOverPending(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	bad := b.release("1.5.0", files("1.5.0", nil), failing(testenv.FailUnready))
	b.killCLI("2", "pending-upgrade", "upgrade", releaseName, bad.PayloadDir, "-f", bad.ValuesFile)
	b.change(byTheAgent)
	two := b.release("2.0.0", files("2.0.0", map[string]string{"templates/x.yaml": `{{ fail "broken" }}`}), "")
	res := b.run(b.job(two, one))
	failsWith(t, res, "broken")
	if !res.Restored || res.Serving != "1.0.0" || b.approvals != 1 || !strings.Contains(res.Message, "revision 2 had died half-way") {
		t.Errorf("%d approvals, %+v", b.approvals, res)
	}
	b.serves("1.0.0")
	if got := b.statuses(); got != "1 superseded, 2 failed, 3 deployed" {
		t.Errorf("history: %s", got)
	}
}

func TestAlreadyApplied(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "greeting: hello\n")
	job := b.job(one, nil)
	b.up(one, nil)
	// The same claim, and a later one of the same task.
	for _, token := range []task.Token{job.Token, "a later claim"} {
		job.Token = token
		if res := b.run(job); !res.Succeeded || res.HelmRevision != 1 || b.approvals != 0 {
			t.Errorf("%d approvals, %+v", b.approvals, res)
		}
	}
	// The task was put back by hand with other values: deployed anew.
	job.Release.ValuesFile = b.release("1.0.0", nil, "greeting: bye\n").ValuesFile
	if res := b.run(job); !res.Succeeded || res.HelmRevision != 2 {
		t.Errorf("%+v", res)
	}
}
