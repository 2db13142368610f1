package helm

import (
	"errors"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Helm copies labels into the next revision, whoever makes it. What a person does
// to a release of the agent is the person's all the same.
func TestInheritedLabelsProveNothing(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	bad := b.release("1.5.0", files("1.5.0", nil), failing(testenv.FailUnready))
	b.killCLI("2", "pending-upgrade", "upgrade", releaseName, bad.PayloadDir, "-f", bad.ValuesFile)
	two := b.release("2.0.0", files("2.0.0", nil), "")
	b.refusedWith(b.run(b.job(two, one)), "is pending-upgrade since", "begun by somebody else")
}

// A claim that was taken over left its revision half applied. Cancelled, or with its
// process dead before it had recorded anything, the next claim undoes that.
func TestRecoverUndoesWhatAnEarlierClaimLeft(t *testing.T) {
	t.Parallel()
	for _, status := range []release.Status{release.StatusPendingUpgrade, release.StatusFailed} {
		t.Run(string(status), func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			one := b.release("1.0.0", files("1.0.0", nil), "")
			b.up(one, nil)
			two := b.release("2.0.0", files("2.0.0", nil), failing(testenv.FailUnready))
			job := b.job(two, one)
			b.killCLI("2", "pending-upgrade", "upgrade", releaseName, two.PayloadDir, "-f", two.ValuesFile)
			b.change(func(rel *release.Release) {
				byTheAgent(rel)
				rel.Labels[labelTask] = labelValue(string(job.TaskID))
				rel.Info.Status = status
			})
			job.Action = protocol.ActionRecover
			res := b.run(job)
			failsWith(t, res, "died while it brought up release 2.0.0")
			if !res.Restored || res.Serving != "1.0.0" || !res.Changed {
				t.Errorf("%+v", res)
			}
			b.serves("1.0.0")
			if got := b.statuses(); got != "1 superseded, 2 failed, 3 deployed" {
				t.Errorf("history: %s", got)
			}
		})
	}
}

// Our own removal of a first installation, cut short, does not block the release.
func TestOwnUninstallationIsFinished(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.helm("install", releaseName, one.PayloadDir, "--wait")
	b.change(func(rel *release.Release) {
		byTheAgent(rel)
		rel.Info.Status = release.StatusUninstalling
	})
	if res := b.run(b.job(one, nil)); !res.Succeeded || res.HelmRevision != 1 {
		t.Errorf("%+v", res)
	}
	b.serves("1.0.0")
}

// What a person uninstalled, keeping its history, does not come back when the
// next installation fails.
func TestWhatWasUninstalledStaysSo(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	b.helm("uninstall", releaseName, "--keep-history", "--wait")
	two := b.release("2.0.0", files("2.0.0", nil), failing(testenv.FailCrash))
	res := b.expire(b.job(two, nil), notReady, crashed)
	failsWith(t, res, "keeps ending")
	if res.Restored || res.Serving != "" || !strings.Contains(res.Message, "it was removed; nothing served before") {
		t.Errorf("%+v", res)
	}
	if got := b.kubectl("get", "deployments", "--output", "name"); got != "" {
		t.Errorf("%s came back", got)
	}
}

// Tests are for `helm test`, which nobody runs here: they need no permissions.
func TestTestHooksNeedNoPermissions(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	path, err := b.k.ServiceAccountKubeconfig(b.ns, "agent")
	if err != nil {
		t.Fatal(err)
	}
	b.kubeconfig = path
	b.allow(forRecords + "," + forConfig + "," + forWeb)
	test := "apiVersion: v1\nkind: Pod\nmetadata: {name: check, annotations: {helm.sh/hook: test}}\nspec: {containers: [{name: main, image: example.test/check}]}\n"
	b.await(b.release("1.0.0", files("1.0.0", map[string]string{"templates/tests/check.yaml": test}), ""), "")
	b.serves("1.0.0")
}

// A hook may be of a kind that a template brings: Helm looks when its time has
// come.
func TestHookOfAKindThatATemplateBrings(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	group := b.ns + ".example.test"
	more := map[string]string{
		"templates/crd.yaml":   customKind(group),
		"templates/thing.yaml": "apiVersion: " + group + "/v1\nkind: Thing\nmetadata: {name: one, annotations: {helm.sh/hook: post-install}}\n",
	}
	b.up(b.release("1.0.0", files("1.0.0", more), ""), nil)
	b.kubectl("get", "things."+group, "one")
	b.helm("uninstall", releaseName)
}

// A hook whose object is there already, and is not to be removed first, is
// refused: what is there may be somebody else's.
func TestAHooksNamesakeStays(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	if err := b.k.Apply(b.ns, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"mine"},"data":{"precious":"yes"}}`); err != nil {
		t.Fatal(err)
	}
	namesake := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine, annotations: {helm.sh/hook: pre-install, helm.sh/hook-delete-policy: hook-failed}}\n"
	rel := b.release("1.0.0", files("1.0.0", map[string]string{"templates/mine.yaml": namesake}), "")
	b.refusedWith(b.run(b.job(rel, nil)), `configmap "mine" exists already`, "before-hook-creation")
	if got := b.kubectl("get", "configmap", "mine", "--output", "jsonpath={.data.precious}"); got != "yes" {
		t.Errorf("it holds %q", got)
	}
}

// A hook that waits for its predecessor to go says what that waits for.
func TestHookWhoseDeletionHangs(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0.0", files("1.0.0", nil), "")
	b.up(one, nil)
	if err := b.k.Apply(b.ns, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"before","finalizers":["example.test/never"]}}`); err != nil {
		t.Fatal(err)
	}
	before := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: before, annotations: {helm.sh/hook: pre-upgrade}}\n"
	job := b.job(b.release("2.0.0", files("2.0.0", map[string]string{"templates/before.yaml": before}), ""), one)
	job.Timeout = enough()
	failsWith(t, b.run(job), `configmap "before" was deleted and is not gone: it waits for example.test/never`)
	b.kubectl("patch", "configmap", "before", "--patch", `{"metadata":{"finalizers":null}}`)
	b.serves("1.0.0")
}

// An error that comes long before the time is up is not that.
func TestATimeoutOfARequestIsNotTheSteps(t *testing.T) {
	webhook := errors.New(`failed calling webhook "validate.example.test": context deadline exceeded`)
	if isTimeout(webhook, time.Now().Add(time.Hour)) {
		t.Error("a webhook's timeout counts as the step's")
	}
	if !isTimeout(webhook, time.Now()) {
		t.Error("at the end of the time it does not")
	}
}

// A history whose beginning is pruned, or that ended with an uninstallation, does
// not tell what one that is whole tells.
func TestHistoriesThatAreNotWhole(t *testing.T) {
	made := func(version int, status release.Status, description string) *release.Release {
		rel := &release.Release{Version: version, Info: &release.Info{Status: status, Description: description}}
		byTheAgent(rel)
		return rel
	}
	for name, c := range map[string]struct {
		h      history
		never  bool
		serves int
	}{
		"first tries":      {history{made(1, release.StatusFailed, "")}, true, 0},
		"pruned":           {history{made(2, release.StatusFailed, ""), made(3, release.StatusFailed, "")}, false, 0},
		"uninstalled":      {history{made(1, release.StatusUninstalled, ""), made(2, release.StatusFailed, "")}, true, 0},
		"installed over":   {history{made(1, release.StatusSuperseded, "superseded by new release"), made(2, release.StatusFailed, "")}, true, 0},
		"served":           {history{made(1, release.StatusSuperseded, "Install complete"), made(2, release.StatusFailed, "")}, false, 1},
		"served after all": {history{made(1, release.StatusUninstalled, ""), made(2, release.StatusDeployed, ""), made(3, release.StatusFailed, "")}, false, 2},
	} {
		if got := c.h.neverServed(); got != c.never {
			t.Errorf("%s: never served is %v", name, got)
		}
		serves := 0
		if rel := c.h.serving(); rel != nil {
			serves = rel.Version
		}
		if serves != c.serves {
			t.Errorf("%s: revision %d serves, want %d", name, serves, c.serves)
		}
	}
}
