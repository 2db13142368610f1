package compose

import (
	"context"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// builds is a release whose web is built from source, and so is its side, whose
// sources never change.
func (b *fixture) builds(version, motd string, more map[string]string) *protocol.Release {
	b.t.Helper()
	web := strings.Replace(b.web("any", "  side: {build: side, stop_grace_period: 1s}\n"), "image: "+b.image,
		"build: {context: ., dockerfile: docker/Dockerfile, args: {TOKEN: '${TOKEN}', APP_VERSION: '"+version+"'}, secrets: [pin]}", 1)
	web = strings.Replace(web, "      APP_VERSION: \"any\"\n", "      X: x\n", 1) + "secrets: {pin: {environment: PIN}}\n"
	files := map[string]string{
		"compose.yaml":      web,
		"docker/Dockerfile": "FROM " + b.image + "\nARG APP_VERSION\nARG TOKEN\nENV APP_VERSION=$APP_VERSION\nLABEL token=$TOKEN\nCOPY motd /motd\n",
		"motd":              motd,
		"side/Dockerfile":   "FROM " + b.image + "\n",
	}
	for name, text := range more {
		files[name] = text
	}
	return b.release(version, files, "TOKEN=token-of-the-build\nPIN=pin-of-the-build\n")
}

// TestBuild: what a release builds from source is built before anything is changed,
// and a rollback finds what the release before had built.
func TestBuild(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	t.Cleanup(func() {
		if err := testenv.RemoveComposeProject(context.Background(), b.project); err != nil {
			t.Error(err)
		}
		for _, ref := range strings.Fields(testenv.DockerOutput(t, "image", "ls", "--quiet", "--filter", "label="+labelBuilt+"="+b.project)) {
			testenv.DockerOutput(t, "image", "rm", "--force", ref)
		}
	})
	one, two := b.builds("1.0", "one", nil), b.builds("2.0", "two", nil)
	check := func(version, motd string) {
		t.Helper()
		if v, m := b.ask("web", "/"), b.ask("web", "/file?path=/motd"); v != version || m != motd {
			t.Errorf("web answers %q and %q, want %q and %q", v, m, version, motd)
		}
	}
	b.up(one, nil)
	check("1.0", "one")
	if !strings.Contains(b.log, "COPY motd /motd") {
		t.Error("the log does not say what was built")
	}
	side := b.container("side")
	b.up(two, kept(one))
	check("2.0", "two")
	if b.container("side") != side {
		t.Error("a container whose sources did not change was replaced")
	}
	for _, secret := range []string{"token-of-the-build", "pin-of-the-build"} {
		if strings.Contains(b.log, secret) {
			t.Errorf("the log shows %s", secret)
		}
	}

	broken := b.builds("3.0", "three", map[string]string{"docker/Dockerfile": "FROM " + b.image + "\nCOPY nothing /nothing\n"})
	id := b.container("web")
	res := b.run(b.job(broken, kept(two)))
	failsWith(t, res, `build the image of service "web"`, "nothing")
	if res.Changed || b.approvals != 0 || b.container("web") != id {
		t.Errorf("touched: %+v, %d approvals", res, b.approvals)
	}
	// It is built, and then it does not come up: what served before is not built again.
	bad := b.builds("4.0", "four", map[string]string{"docker/Dockerfile": "FROM " + b.image + "\nCMD [\"crash\"]\n"})
	if res := b.run(b.job(bad, kept(two))); !res.Restored {
		t.Errorf("not restored: %+v", res)
	}
	check("2.0", "two")
	// Refused after it was built: the names stand for what serves.
	late := b.builds("5.0", "five", nil)
	web := testenv.DockerOutput(t, "image", "inspect", "--format", "{{.Id}}", b.project+"-web")
	b.deny = errDenied
	b.run(b.job(late, kept(two)))
	b.deny = nil
	if got := testenv.DockerOutput(t, "image", "inspect", "--format", "{{.Id}}", b.project+"-web"); got != web {
		t.Error("a refused release has moved the name of an image")
	}
	back := b.job(kept(one), kept(two))
	back.Kind, back.TaskID, back.Release.EnvFile = task.KindRollback, "task-back", one.EnvFile
	if res := b.run(back); !res.Succeeded {
		t.Fatalf("%+v", res)
	}
	check("1.0", "one")
	if strings.Contains(b.log, "building the image") {
		t.Error("a rollback has built an image anew")
	}
}

// TestBuildRefusals: what a build may not ask for.
func TestBuildRefusals(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for _, c := range []struct {
		build string
		want  []string
	}{
		{"..", []string{`service "web": build: context`, "outside of the release"}},
		{"https://example.org/x.git", []string{"context", "remote resource"}},
		{"{context: ., dockerfile: ../Dockerfile}", []string{"dockerfile", "outside of the release"}},
		{"{context: ., dockerfile: Missing}", []string{"dockerfile", "no Missing"}},
		{"{context: nowhere}", []string{"context", "no nowhere"}},
		{"{context: ., ssh: [default]}", []string{"ssh"}},
		{"{context: ., privileged: true}", []string{"privileged"}},
		{"{context: ., platforms: [linux/amd64, linux/arm64]}", []string{"several platforms"}},
		{"{context: ., additional_contexts: {x: ../x}}", []string{"additional_contexts.x", "outside of the release"}},
		{"{context: ., secrets: [s]}", []string{`secret "s"`, "no variable NOBODY"}},
	} {
		res := b.run(b.job(b.release("1.0", map[string]string{
			"compose.yaml": "services: {web: {build: " + c.build + "}}\nsecrets: {s: {environment: NOBODY}}\n",
			"Dockerfile":   "FROM scratch\n",
		}, ""), nil))
		failsWith(t, res, c.want...)
		if res.Changed || b.approvals != 0 {
			t.Errorf("touched: %+v", res)
		}
	}
}
