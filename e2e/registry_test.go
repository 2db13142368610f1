package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// Images of a registry that asks for a password are pulled with what `docker login` left,
// as docs/operations.md says. Without it the sentence says what to do, and what served
// before goes on.
func TestImagesOfAPrivateRegistry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	registry := testenv.NewRegistry(t, testenv.RegistryOptions{User: "agent", Password: "canary-31cc07"})
	w.write("password", []byte("canary-31cc07"))
	login := func(config string) {
		t.Helper()
		w.script("export DOCKER_CONFIG=" + config + "; " + testenv.Doc(t, "docs/operations.md", "Images of a private registry", 0,
			"runuser -u wrktalk-agent -- ", "", "registry.example.com", registry, "USER", "agent"))
	}
	mine := filepath.Join(w.dir, "mine")
	login(mine)
	image := registry + "/team/web:1.1.0"
	w.script("docker tag " + testenv.AppImage(t, "1.1.0") + " " + image + "; docker --config " + mine + " push -q " + image + "; docker rmi " + image)
	t.Cleanup(func() { w.script("docker rmi " + image) })

	agents := filepath.Join(w.dir, "agents")
	if err := os.Mkdir(agents, 0o700); err != nil {
		t.Fatal(err)
	}
	w.run("DOCKER_CONFIG=" + agents)
	if r := w.deploy(w.release("1.0.0", compose(testenv.AppImage(t, "1.0.0")).tarball(t), "")); r.Status != "completed" {
		t.Fatalf("task is %s", r.Raw)
	}
	release := w.release("1.1.0", compose(image).tarball(t), "")
	if r := w.deploy(release); r.Status != "failed" || !strings.Contains(r.Error, image) || !strings.Contains(r.Error, "docker login "+registry) {
		t.Errorf("without a login: %s", r.Raw)
	}
	if got := w.get("/"); got != "1.0.0" {
		t.Errorf("release %s serves", got)
	}
	login(agents)
	if r := w.deploy(release); r.Status != "completed" {
		t.Fatalf("with a login: %s", r.Raw)
	}
	if got := w.get("/"); got != "1.1.0" {
		t.Errorf("release %s serves", got)
	}
	w.mails(6)
	for _, m := range w.smtp.Mails() {
		if strings.Contains(string(m.Raw), "canary-31cc07") {
			t.Error("a mail holds the password")
		}
	}
}
