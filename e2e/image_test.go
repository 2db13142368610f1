package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// container is the agent in a container of its own, beside the engine that it deploys
// to. The database of its world is on the host, so it shares the host's network.
type container struct {
	*world
	project string // of Compose, by whose label what the test makes is removed
	id      string
}

func newContainer(t *testing.T) *container {
	t.Helper()
	return &container{world: newWorld(t), project: testenv.ComposeProject(t)}
}

// settings are the variables of the reference, in the world of the test.
func (c *container) settings() []string {
	names := []string{
		"WRKTALK_AGENT_DEPLOYMENT_TYPE", "WRKTALK_AGENT_DB_HOST", "WRKTALK_AGENT_DB_PORT", "WRKTALK_AGENT_DB_NAME",
		"WRKTALK_AGENT_DB_USER", "WRKTALK_AGENT_DB_PASSWORD", "WRKTALK_AGENT_COMPOSE_PROJECT_NAME", "WRKTALK_AGENT_POLL_INTERVAL",
	}
	return slices.DeleteFunc(slices.Clone(c.env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return !slices.Contains(names, name)
	})
}

// start starts the agent as `docker run -d` with the settings, the engine's socket and
// args does.
func (c *container) start(args ...string) {
	c.t.Helper()
	run := []string{
		"run", "-d", "--network", "host", "--label", "com.docker.compose.project=" + c.project,
		"-v", "/var/run/docker.sock:/var/run/docker.sock",
	}
	for _, v := range c.settings() {
		run = append(run, "-e", v)
	}
	c.id = testenv.DockerOutput(c.t, append(append(run, args...), testenv.AgentImage(c.t))...)
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("the agent's log:\n%s", c.said())
		}
	})
}

// said returns the agent's log.
func (c *container) said() string {
	out, err := exec.Command("docker", "logs", c.id).CombinedOutput()
	if err != nil {
		c.t.Errorf("docker logs: %v", err)
	}
	return string(out)
}

// with adds text to the Compose file.
func (b bundle) with(text string) bundle {
	b["docker-compose.yaml"] += text + "\n"
	return b
}

// words are the words of a text, wherever its lines end.
func words(text string) string { return strings.Join(strings.Fields(text), " ") }

// script runs a shell script with the settings in its environment, which has to succeed.
func (c *container) script(dir, script string, env ...string) string {
	c.t.Helper()
	bin := c.t.TempDir()
	docker := "#!/bin/sh\n[ \"$1\" != compose ] || { shift; exec " + testenv.ComposeCLI(c.t) + " \"$@\"; }\nexec /usr/bin/docker \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "docker"), []byte(docker), 0o755); err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command("bash", "-euc", script)
	cmd.Dir = dir
	cmd.Env = append(append(append(os.Environ(), c.settings()...), "PATH="+bin+":"+os.Getenv("PATH")), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%v:\n%s\n%s", err, script, out)
	}
	return string(out)
}

// What docs/docker.md says of building the image is what AgentImage does; for another
// processor that takes minutes, so that here it is only looked at.
func TestImageIsBuiltAsDocumented(t *testing.T) {
	t.Parallel()
	c := &container{world: newMachine(t, "none")}
	out := c.script("..", testenv.Doc(t, "docs/docker.md", "The image", 0, "make image", "make --no-print-directory -n image VERSION=9.8.7"))
	for _, want := range []string{"--platform linux/" + runtime.GOARCH + " ", "-t wrktalk-agent:9.8.7 ", "--platform linux/arm64 "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in what is done:\n%s", want, out)
		}
	}
}

// The command line of docs/docker.md.
func TestImageByDockerRun(t *testing.T) {
	t.Parallel()
	c := newContainer(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "db-password"), []byte(dbPassword), 0o600); err != nil {
		t.Fatal(err)
	}
	volume := c.project + "-state"
	testenv.DockerOutput(t, "volume", "create", "--label", "com.docker.compose.project="+c.project, volume)
	out := c.script(dir, testenv.Doc(t, "docs/docker.md", "Running it", 1,
		"docker run -d --name wrktalk-agent ", "docker run -d --network host --label com.docker.compose.project="+c.project+" --name "+c.project+"-agent ",
		"=db.internal ", "=127.0.0.1 -e WRKTALK_AGENT_DB_PORT ", "_NAME=wrktalk ", "_NAME ", "_USER=wrktalk ", "_USER ",
		"-v wrktalk-agent:", "-e WRKTALK_AGENT_COMPOSE_PROJECT_NAME -e WRKTALK_AGENT_POLL_INTERVAL -v "+volume+":", "wrktalk-agent:VERSION", testenv.AgentImage(t)))
	c.id = strings.TrimSpace(out)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's log:\n%s", c.said())
		}
	})
	files := compose(testenv.AppImageWith(t, "1.0.0", 0), "volumes: ['./site:/site:ro']")
	files["site/motd.txt"] = "of the release"
	if r := c.deploy(c.release("1.0.0", files.tarball(t), "")); r.Status != "completed" {
		t.Fatalf("task is %s", r.Raw)
	}
	if got := c.get("/file?path=/site/motd.txt"); got != "of the release" {
		t.Errorf("the mounted file holds %q", got)
	}
}

// The reference's own command line, with the environment and the socket alone: releases
// without files that containers mount are deployed, others refused with what to do, and
// that there is no page is said once.
func TestImageWithEnvironmentAndSocketAlone(t *testing.T) {
	t.Parallel()
	c := newContainer(t)
	c.start()
	if size, err := strconv.Atoi(testenv.DockerOutput(t, "image", "inspect", "-f", "{{.Size}}", testenv.AgentImage(t))); err != nil || size > 100<<20 {
		t.Errorf("the image has %d bytes, %v", size, err)
	}
	image := testenv.AppImageWith(t, "1.0.0", 0)
	for _, version := range []string{"1.0.0", "1.1.0"} {
		r := c.deploy(c.release(version, compose(image, "environment: {APP_VERSION: '"+version+"'}", "volumes: ['data:/data']").with("volumes: {data: {}}").tarball(t), ""))
		if message, _ := r.Result["message"].(string); r.Status != "completed" || strings.Contains(message, "maintenance") {
			t.Fatalf("release %s: task is %s", version, r.Raw)
		}
		if got := c.get("/"); got != version {
			t.Errorf("the application answers %q, want %s", got, version)
		}
	}
	files := compose(image, "volumes: ['./site:/site:ro']")
	files["site/motd.txt"] = "of the release"
	r := c.deploy(c.release("2.0.0", files.tarball(t), ""))
	if want := "-v wrktalk-compose:/tmp/wrktalk"; r.Status != "failed" || !strings.Contains(r.Error, want) {
		t.Errorf("a release that mounts files: %s, want %q", r.Raw, want)
	}
	if got := c.get("/"); got != "1.1.0" {
		t.Errorf("after a release that was refused, the application answers %q", got)
	}
	log := c.said()
	if n := strings.Count(log, "no maintenance page is put up"); n != 1 {
		t.Errorf("that there is no page is said %d times:\n%s", n, log)
	}
	c.eventually("the log says what to mount", func() bool {
		return strings.Contains(c.said(), "releases that mount files of their own are refused")
	})
	out := testenv.DockerOutput(t, "exec", c.id, "wrktalk-agent", "check")
	for _, want := range []string{"Docker Engine", testenv.Doc(t, "docs/docker.md", "Where releases' files lie", 0)} {
		if !strings.Contains(words(out), words(want)) {
			t.Errorf("check says %s, want %q", out, want)
		}
	}
	testenv.DockerOutput(t, "exec", c.id, "/usr/bin/wrktalk-agent", "health")
	testenv.DockerOutput(t, "stop", "-t", "600", c.id)
	if got := testenv.DockerOutput(t, "inspect", "-f", "{{.State.ExitCode}}", c.id); got != "0" {
		t.Errorf("stopped, it exits with %s", got)
	}
}

// Another user is told how to open the socket, and works when it may.
func TestImageAsAnotherUser(t *testing.T) {
	t.Parallel()
	c := newContainer(t)
	check := func(args ...string) string {
		run := []string{"run", "--rm", "--network", "host", "--user", "65532:65532", "-v", "/var/run/docker.sock:/var/run/docker.sock"}
		for _, v := range c.settings() {
			run = append(run, "-e", v)
		}
		out, _ := exec.Command("docker", append(append(run, args...), testenv.AgentImage(t), "check")...).CombinedOutput()
		return string(out)
	}
	info, err := os.Stat("/var/run/docker.sock")
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprint("--group-add ", info.Sys().(*syscall.Stat_t).Gid)
	if out := check(); !strings.Contains(out, "may not be opened by uid 65532") || !strings.Contains(out, group) {
		t.Errorf("check says %s, want %q", out, group)
	}
	args := "--rm --network host -v /var/run/docker.sock:/var/run/docker.sock"
	for _, v := range c.settings() {
		name, _, _ := strings.Cut(v, "=")
		args += " -e " + name
	}
	out := c.script(".", testenv.Doc(t, "docs/docker.md", "Its user", 0, "...", args+" "+testenv.AgentImage(t)+" check"))
	if !strings.Contains(out, "Docker Engine") || strings.Contains(out, "failed ") {
		t.Errorf("with the group, check says %s", out)
	}
}

// As little as an agent needs, and one volume under a name: releases mount their files,
// which the engine finds where it keeps the volume, and what services wrote outlives
// the agent's container. No release gets the volume.
func TestImageWithAVolume(t *testing.T) {
	t.Parallel()
	c := newContainer(t)
	volume := c.project + "-state"
	testenv.DockerOutput(t, "volume", "create", "--label", "com.docker.compose.project="+c.project, volume)
	port := freePort(t)
	start := func() {
		c.start("--read-only", "--tmpfs", "/tmp", "--tmpfs", "/run/wrktalk-agent", "--security-opt", "no-new-privileges",
			"--cap-drop", "ALL", "--cap-add", "CHOWN", "--cap-add", "DAC_OVERRIDE", "--cap-add", "FOWNER",
			"-v", volume+":/var/lib/wrktalk-agent", "-e", "WRKTALK_AGENT_COMPOSE_WORKING_DIR=/var/lib/wrktalk-agent/compose",
			"-e", "WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER=none", "-e", "WRKTALK_AGENT_HTTP_LISTEN=127.0.0.1:"+port)
	}
	release := func(version string, more ...string) bundle {
		b := compose(testenv.AppImageWith(t, "1.0.0", 0), append([]string{
			"volumes: ['./site:/site:ro', './data:/data']", "secrets: [token]", "environment: {APP_VERSION: '" + version + "'}",
		}, more...)...).with("secrets: {token: {file: ./token}}")
		b["site/motd.txt"], b["token"] = "site of "+version, "token of "+version
		return b
	}
	start()
	for _, version := range []string{"1.0.0", "1.1.0"} {
		if r := c.deploy(c.release(version, release(version).tarball(t), "")); r.Status != "completed" {
			t.Fatalf("release %s: task is %s", version, r.Raw)
		}
		for path, want := range map[string]string{
			"/": version, "/file?path=/site/motd.txt": "site of " + version, "/file?path=/run/secrets/token": "token of " + version,
		} {
			if got := c.get(path); got != want {
				t.Errorf("%s answers %q, want %q", path, got, want)
			}
		}
		if version == "1.0.0" {
			web := testenv.DockerOutput(t, "ps", "-q", "--filter", "label=com.docker.compose.project="+c.world.project)
			data := testenv.DockerOutput(t, "inspect", "-f", `{{range .Mounts}}{{if eq .Destination "/data"}}{{.Source}}{{end}}{{end}}`, web)
			if err := os.WriteFile(filepath.Join(data, "note"), []byte("kept"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := testenv.DockerOutput(t, "exec", c.id, "wrktalk-agent", "health"); got != "the agent is healthy" {
			t.Errorf("health says %q", got)
		}
		// The next one is another container, with another id.
		testenv.DockerOutput(t, "stop", "-t", "600", c.id)
		testenv.DockerOutput(t, "rm", c.id)
		start()
	}
	if got := c.get("/file?path=/data/note"); got != "kept" {
		t.Errorf("what the service wrote is %q", got)
	}
	stolen := compose(testenv.AppImageWith(t, "1.0.0", 0), "volumes: ['agent:/agent']").with("volumes: {agent: {external: true, name: " + volume + "}}")
	if r := c.deploy(c.release("2.0.0", stolen.tarball(t), "")); r.Status != "failed" || !strings.Contains(r.Error, "the agent's own") {
		t.Errorf("a release that mounts the agent's volume: %s", r.Raw)
	}
	at := testenv.DockerOutput(t, "volume", "inspect", "-f", "{{.Mountpoint}}", volume)
	stolen = compose(testenv.AppImageWith(t, "1.0.0", 0), "volumes: ['"+filepath.Dir(filepath.Dir(at))+":/agent']")
	if r := c.deploy(c.release("2.1.0", stolen.tarball(t), "")); r.Status != "failed" || !strings.Contains(r.Error, "holds the agent's own") {
		t.Errorf("a release that mounts what holds the agent's volume: %s", r.Raw)
	}
}

// The shipped Compose file brings the agent up. Even where it is one of the services
// that a release has, or had, it neither replaces nor removes itself.
func TestImageByComposeLeavesItself(t *testing.T) {
	t.Parallel()
	c := newContainer(t)
	dir := t.TempDir()
	shipped, err := os.ReadFile("../packaging/docker/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"compose.yaml":  string(shipped),
		"override.yaml": "services: {agent: {network_mode: host, extra_hosts: !reset [], environment: {WRKTALK_AGENT_POLL_INTERVAL: 1, WRKTALK_AGENT_HTTP_LISTEN: off}}}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// In the project that it deploys, which is what the file itself avoids.
	env := []string{"COMPOSE_PROJECT_NAME=" + c.world.project, "COMPOSE_FILE=compose.yaml:override.yaml", "PASSWORD=" + dbPassword}
	said := c.script("..", testenv.Doc(t, "docs/docker.md", "Running it", 0,
		"cd packaging/docker", "cd "+dir, "'the password'", `"$PASSWORD"`, "wrktalk-agent:VERSION", testenv.AgentImage(t), "=db.internal", "=127.0.0.1"), env...)
	if !strings.Contains(said, "Docker Engine") {
		t.Errorf("check says %s", said)
	}
	c.id = c.containers()[0]
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's log:\n%s", c.said())
		}
	})
	image := testenv.AppImageWith(t, "1.0.0", 0)
	with := compose(image, "depends_on: [agent]")
	with["docker-compose.yaml"] += "  agent:\n    image: " + image + "\n"
	without := compose(image)
	for i, b := range []bundle{with, without} {
		r := c.deploy(c.release(strconv.Itoa(i)+".0.0", b.tarball(t), ""))
		message, _ := r.Result["message"].(string)
		if r.Status != "completed" || strings.Contains(message, "is the agent itself") != (i == 0) {
			t.Fatalf("task is %s", r.Raw)
		}
		if got := testenv.DockerOutput(t, "inspect", "-f", "{{.State.Status}} {{.RestartCount}}", c.id); got != "running 0" {
			t.Fatalf("the agent's container is %s", got)
		}
		if n := len(c.containers()); n != 2 {
			t.Errorf("the project has %d containers, want the agent's and the release's", n)
		}
	}
	next := c.project + "-agent:next"
	testenv.DockerOutput(t, "tag", testenv.AgentImage(t), next)
	t.Cleanup(func() {
		testenv.DockerOutput(t, append([]string{"rm", "-f"}, c.containers()...)...)
		testenv.DockerOutput(t, "rmi", next)
	})
	c.script(dir, testenv.Doc(t, "docs/docker.md", "Updating the agent", 0), append(env, "WRKTALK_AGENT_IMAGE="+next)...)
	former := c.id
	for _, id := range c.containers() {
		if testenv.DockerOutput(t, "inspect", "-f", "{{.Config.Image}} {{.State.Status}}", id) == next+" running" {
			c.id = id
		}
	}
	if c.id == former {
		t.Error("the agent was not replaced")
	}
}
