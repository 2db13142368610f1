package compose

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// failing are services that do not come up, each for one reason.
var failing = []struct {
	name, service string
	want          []string
}{
	{"crash", "    command: [crash, '3']\n    environment: {APP_LAST_WORDS: 'no disk'}\n", []string{`service "bad" exited with code 3`, "no disk"}},
	{"loop", "    command: [crash]\n    restart: always\n", []string{`service "bad" keeps restarting`, "last exit code 1"}},
	{"sick", "    command: [sick]\n    healthcheck: {test: [CMD, /app, health], interval: 100ms, retries: 2}\n", []string{`service "bad" is unhealthy`, "503"}},
	{"given up", "    command: [crash]\n    restart: on-failure:1\n", []string{`service "bad" exited with code 1`}},
	{"no such program", "    entrypoint: [/missing]\n", []string{"/missing"}},
}

func TestFailureRestoresThePrevious(t *testing.T) {
	for _, c := range failing {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "    volumes: ['./motd:/motd:ro']\n"), "motd": "one"}, "")
			b.up(one, nil)
			if err := os.RemoveAll(one.PayloadDir); err != nil {
				t.Fatal(err)
			}
			two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "  bad:\n    image: "+b.image+"\n"+c.service)}, "")
			job := b.job(two, kept(one))
			job.Compose.Settle = 10 * time.Second // a slow machine takes a while between two crashes
			res := b.run(job)
			failsWith(t, res, append(c.want, "release 2.0 did not come up")...)
			if !res.Restored || res.Serving != "1.0" || !res.Touched || !strings.Contains(res.Message, "release 1.0 was restored") {
				t.Errorf("not restored: %+v", res)
			}
			if got := b.ask("web", "/"); got != "1.0" {
				t.Errorf("web answers %q", got)
			}
			if got := b.ask("web", "/file?path=/motd"); got != "one" {
				t.Errorf("the bundle's file reads %q", got)
			}
			if b.containers() != 1 {
				t.Errorf("%d containers are left", b.containers())
			}
			if link, _ := os.Readlink(filepath.Join(b.workdir, "current")); link != "releases/"+bundleName(*one) {
				t.Errorf("current is %q", link)
			}
		})
	}
}

func TestFailureBehindDependency(t *testing.T) {
	b := newBench(t)
	res := b.run(b.job(b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", `
    depends_on:
      db: {condition: service_healthy}
  db:
    image: `+b.image+`
    command: [crash, "7"]
    restart: always
    healthcheck: {test: [CMD, /app, health], interval: 10s, retries: 100}
`)}, ""), nil))
	failsWith(t, res, `service "db"`, "code 7")
	if len(res.LogTail) == 0 || !strings.Contains(fmt.Sprint(res.LogTail), "cannot go on") {
		t.Errorf("log tail %q", res.LogTail)
	}
}

func TestFailedFirstInstallationIsRemoved(t *testing.T) {
	b := newBench(t)
	rel := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", `
    volumes: ["data:/data"]
  bad:
    image: `+b.image+`
    command: [crash]
volumes:
  data:
`)}, "")
	res := b.run(b.job(rel, nil))
	failsWith(t, res, `service "bad" exited with code 1`)
	if res.Restored || res.Serving != "" || !strings.Contains(res.Message, "the failed release was removed; nothing served before") {
		t.Errorf("%+v", res)
	}
	if b.containers() != 0 {
		t.Error("containers are left")
	}
	if testenv.DockerOutput(t, "network", "ls", "--quiet", "--filter", "label=com.docker.compose.project="+b.project) != "" {
		t.Error("networks are left")
	}
	if testenv.DockerOutput(t, "volume", "ls", "--quiet", "--filter", "label=com.docker.compose.project="+b.project) == "" {
		t.Error("a volume was removed")
	}
}

func TestFailureWithNothingToRestore(t *testing.T) {
	b := newBench(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	b.up(one, nil)
	bad := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "    command: [crash]\n")}, "")
	res := b.run(b.job(bad, nil))
	failsWith(t, res, `service "web" exited`)
	if res.Restored || !strings.Contains(res.Message, "left as it is") || b.containers() != 1 {
		t.Errorf("%+v", res)
	}
	res = b.run(b.job(bad, bad))
	failsWith(t, res, `service "web" exited`)
	if res.Restored || !strings.Contains(res.Message, "nothing else to restore") {
		t.Errorf("%+v", res)
	}
}

func TestRestoringFailsLoudly(t *testing.T) {
	b := newBench(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	b.up(one, nil)
	if err := os.RemoveAll(filepath.Join(b.workdir, releasesDir, bundleName(*one))); err != nil {
		t.Fatal(err)
	}
	bad := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "    command: [crash]\n")}, "")
	res := b.run(b.job(bad, kept(one)))
	failsWith(t, res, `service "web" exited`, "RESTORING release 1.0 FAILED", "no longer kept")
	if res.Restored || res.Serving != "" {
		t.Errorf("%+v", res)
	}
	if !strings.Contains(b.events[1].Text, "cannot be restored") {
		t.Errorf("nothing warned beforehand: %+v", b.events)
	}
	// The fetcher staged it: then it is restored from there.
	res = b.run(b.job(bad, one))
	if !res.Restored || b.ask("web", "/") != "1.0" {
		t.Errorf("%+v", res)
	}
}

func TestTimeout(t *testing.T) {
	b := newBench(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	b.up(one, nil)
	text := strings.ReplaceAll(b.web("2.0", "    command: [late]\n"), "retries: 3", "retries: 1000")
	two := b.release("2.0", map[string]string{"compose.yaml": strings.Replace(text, "APP_VERSION", "APP_DELAY: 1h\n      APP_VERSION", 1)}, "")
	job := b.job(two, kept(one))
	// The time is up as soon as it waits: a real limit would have to hold the start
	// of the containers on the slowest machine.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	b.watchers = append(b.watchers, func(e task.Event) bool {
		if e.Phase == task.PhaseWaiting {
			cancel(errTimeout)
		}
		return e.Phase == task.PhaseWaiting
	})
	res := b.runContext(ctx, job)
	failsWith(t, res, "release 2.0 was not up after "+job.Timeout.String(), `service "web" is not healthy yet`)
	if !res.Restored || b.ask("web", "/") != "1.0" {
		t.Errorf("%+v", res)
	}
}

func TestInterruption(t *testing.T) {
	b := newBench(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	b.up(one, nil)
	text := strings.ReplaceAll(b.web("2.0", "    command: [sick]\n"), "retries: 3", "retries: 1000")
	two := b.release("2.0", map[string]string{"compose.yaml": text}, "")

	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("the deployment was interrupted"))
	res := b.runContext(ctx, b.job(two, kept(one)))
	failsWith(t, res, "interrupted")
	if res.Touched || res.Serving != "1.0" {
		t.Errorf("%+v", res)
	}
}

func TestSecretsAreMasked(t *testing.T) {
	b := newBench(t)
	const secret = "pa$$w0rd-for-all"
	rel := b.release("1.0", map[string]string{"compose.yaml": `
services:
  web:
    image: ` + b.image + `
    command: [crash]
    environment: {APP_LAST_WORDS: "login with ${DB_PASSWORD} at postgres://bob:other@db/"}
    container_name: ${CONTAINER_KEY}
`}, "DB_PASSWORD='"+secret+"'\nCONTAINER_KEY=wt"+b.project+"\n")
	res := b.run(b.job(rel, nil))
	failsWith(t, res, "exited with code 1", "${DB_PASSWORD}")
	all := b.log + fmt.Sprint(res, b.events)
	for _, s := range []string{secret, "bob:other", "wt" + b.project} {
		if strings.Contains(all, s) {
			t.Errorf("%q shows", s)
		}
	}
	if !strings.Contains(b.log, "Container ${CONTAINER_KEY}") {
		t.Error("the log does not show the masked name")
	}
}

// TestRefusals: nothing is touched, nothing is kept.
func TestRefusals(t *testing.T) {
	b := newBench(t)
	outside := filepath.Join(t.TempDir(), "outside.yaml")
	if err := os.WriteFile(outside, []byte("services: {web: {image: x}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bomb := "x-a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 10; i++ {
		bomb += fmt.Sprintf("x-a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), ","))
	}
	web := b.web("1.0", "")
	one := b.release("1.0", map[string]string{"compose.yaml": web}, "")
	b.up(one, nil)
	before := b.container("web")
	for _, c := range []struct {
		name  string
		files map[string]string
		env   string
		want  []string
	}{
		{"no file", map[string]string{"README": "", "a/x": "", "b/compose.yaml": web}, "", []string{"find the Compose file", "README, a/, b/"}},
		{"not yaml", map[string]string{"compose.yaml": "a: [\n"}, "", []string{"compose.yaml"}},
		{"unknown key", map[string]string{"compose.yaml": "services: {web: {imagge: x}}\n"}, "", []string{"imagge"}},
		{"no service", map[string]string{"compose.yaml": "services: {web: {image: x, profiles: [a]}}\n"}, "", []string{"no service"}},
		{"missing variable", map[string]string{"compose.yaml": "services: {web: {image: '${IMAGE:?say which}'}}\n"}, "", []string{"IMAGE", "say which"}},
		{"bad env", map[string]string{"compose.yaml": web}, "A=1\nB !=secret-text\n", []string{"line 2"}},
		{"no env", map[string]string{"compose.yaml": web + "    env_file: .env\n"}, "", []string{"no env in the database"}},
		{"missing env file", map[string]string{"compose.yaml": web + "    env_file: sub/x.env\n"}, "", []string{"no file sub/x.env"}},
		{"env file outside", map[string]string{"compose.yaml": web + "    env_file: ../x.env\n"}, "", []string{"outside of the release"}},
		{"provider", map[string]string{"compose.yaml": web + "  p:\n    provider: {type: model}\n"}, "", []string{`service "p" has a provider`}},
		{"models", map[string]string{"compose.yaml": web + "models: {m: {model: x}}\n"}, "", []string{"models (m)"}},
		{"include outside", map[string]string{"compose.yaml": "include: ['" + outside + "']\n" + web}, "", []string{"include", "outside of the release"}},
		{"include up", map[string]string{"compose.yaml": "include: ['../x.yaml']\n" + web}, "", []string{"outside of the release"}},
		{"include by variable", map[string]string{"compose.yaml": "include: ['${WHERE}/x.yaml']\n" + web}, "WHERE=../..\n", []string{"outside of the release"}},
		{"include remote", map[string]string{"compose.yaml": "include: ['oci://example.org/x']\n" + web}, "", []string{"remote resource"}},
		{"nested include", map[string]string{"compose.yaml": "include: [a/c.yaml]\n" + web, "a/c.yaml": "include: [../../x.yaml]\n"}, "", []string{"outside of the release"}},
		{"extends outside", map[string]string{"compose.yaml": web + "    extends: {file: " + outside + ", service: web}\n"}, "", []string{"services.web.extends", "outside of the release"}},
		{"secret file up", map[string]string{"compose.yaml": web + "secrets: {s: {file: ../s}}\n"}, "", []string{"secrets.s.file"}},
		{"secret file missing", map[string]string{"compose.yaml": web + "    secrets: [s]\nsecrets: {s: {file: ./s}}\n"}, "", []string{`secret "s"`, "no file s"}},
		{"config of the host missing", map[string]string{"compose.yaml": web + "    configs: [c]\nconfigs: {c: {file: /nowhere/c}}\n"}, "", []string{`config "c"`, "no file /nowhere/c"}},
		{"secret without variable", map[string]string{"compose.yaml": web + "    secrets: [s]\nsecrets: {s: {environment: PIN}}\n"}, "A=1\n", []string{"no variable PIN"}},
		{"secret of a read-only service", map[string]string{"compose.yaml": web + "    read_only: true\n    secrets: [s]\nsecrets: {s: {environment: PIN}}\n"}, "PIN=1234\n", []string{"read_only"}},
		{"external secret", map[string]string{"compose.yaml": web + "    secrets: [s]\nsecrets: {s: {external: true}}\n"}, "", []string{"external"}},
		{"env as secret", map[string]string{"compose.yaml": web + "    secrets: [s]\nsecrets: {s: {file: .env}}\n"}, "A=1\n", []string{"it is .env"}},
		{"env as mount", map[string]string{"compose.yaml": web + "    volumes: ['./.env:/e:ro']\n"}, "A=1\n", []string{"mounts .env"}},
		{"label file up", map[string]string{"compose.yaml": web + "    label_file: ../s\n"}, "", []string{"label_file"}},
		{"alias bomb", map[string]string{"compose.yaml": bomb + web}, "", []string{"YAML aliases"}},
		{"large file", map[string]string{"compose.yaml": web + "#" + strings.Repeat("x", maxComposeFile)}, "", []string{"larger than 4 MiB"}},
		{"build", map[string]string{"compose.yaml": web + "  built:\n    build: .\n"}, "", []string{"images, not sources"}},
		{"image never", map[string]string{"compose.yaml": "services: {web: {image: 'wrktalk.invalid/none:1', pull_policy: never}}\n"}, "", []string{"wrktalk.invalid/none:1", "forbids"}},
		{"image missing", map[string]string{"compose.yaml": "services: {web: {image: '127.0.0.1:9/none:1'}}\n"}, "", []string{`pull image 127.0.0.1:9/none:1 of service "web"`}},
		{"two bases", map[string]string{"compose.yaml": "services: {web: {}}\n"}, "", []string{"web"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := b.run(b.job(b.release("2.0", c.files, c.env), kept(one)))
			failsWith(t, res, c.want...)
			if res.Touched || res.Restored || res.Serving != "1.0" || b.gates != 0 {
				t.Errorf("touched: %+v, %d gates", res, b.gates)
			}
			if strings.Contains(b.log+res.Error, "secret-text") {
				t.Error("a line of the env shows")
			}
			if b.container("web") != before {
				t.Error("the running container was replaced")
			}
			if got := b.bundles(); !slices.Equal(got, []string{bundleName(*one)}) {
				t.Errorf("bundles left: %v", got)
			}
		})
	}
}

func TestPulls(t *testing.T) {
	b := newBench(t)
	// A registry that is not there: a pull that fails for an image which is here.
	local := "127.0.0.1:9/" + strings.ReplaceAll(b.image, "wrktalk-test-", "")
	testenv.DockerOutput(t, "tag", b.image, local)
	t.Cleanup(func() { testenv.DockerOutput(t, "image", "rm", local) })
	text := strings.Replace(b.web("1.0", "    pull_policy: always\n"), b.image, local, 1)
	b.up(b.release("1.0", map[string]string{"compose.yaml": text}, ""), nil)
	if !strings.Contains(b.log, "could not be pulled; the one on this host is used") {
		t.Error("nothing says that the pull failed")
	}
}

func TestIncludesWithinTheBundle(t *testing.T) {
	b := newBench(t)
	rel := b.release("1.0", map[string]string{
		"compose.yaml":          "include:\n  - path: parts/worker.yaml\n" + b.web("1.0", "    extends: {file: common/base.yaml, service: base}\n    label_file: common/labels\n"),
		"compose.override.yaml": "services: {web: {environment: {OVERRIDE: 'yes'}}}\n",
		"common/base.yaml":      "services: {base: {environment: {BASE: from-base}}}\n",
		"common/labels":         "some.label=x\n",
		"parts/worker.yaml":     "include: [../common/third.yaml]\nservices: {worker: {image: " + b.image + ", stop_grace_period: 1s, env_file: [worker.env]}}\n",
		"parts/worker.env":      "WORKER=1\n",
		"common/third.yaml":     "services: {third: {image: " + b.image + ", stop_grace_period: 1s}}\n",
	}, "")
	b.up(rel, nil)
	if b.containers() != 3 || b.env("web", "BASE") != "from-base" || b.env("web", "OVERRIDE") != "404" {
		t.Errorf("%d containers, BASE=%s, OVERRIDE=%s", b.containers(), b.env("web", "BASE"), b.env("web", "OVERRIDE"))
	}
	if !strings.Contains(b.log, "compose.override.yaml of release 1.0 is not used") {
		t.Error("nothing says that the override file is not used")
	}
}

func TestRecover(t *testing.T) {
	recovery := func(b *bench, rel, prev *deployment.Release) deployment.Job {
		job := b.job(rel, prev)
		job.Action = deployment.ActionRecover
		return job
	}
	t.Run("already up", func(t *testing.T) {
		b := newBench(t)
		one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
		// The hash of side has the id of web's container in it.
		two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", `
  side:
    image: `+b.image+`
    command: [once]
    network_mode: service:web
`)}, "")
		b.up(one, nil)
		b.half(two, kept(one))
		id := b.container("web")
		res := b.run(recovery(b, two, kept(one)))
		if !res.Succeeded || res.Serving != "2.0" || b.gates != 0 || b.container("web") != id {
			t.Errorf("%+v, %d gates", res, b.gates)
		}
	})
	t.Run("not begun", func(t *testing.T) {
		b := newBench(t)
		one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
		two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "")}, "")
		b.up(one, nil)
		id := b.container("web")
		res := b.run(recovery(b, two, kept(one)))
		failsWith(t, res, "the deployment process died")
		if !res.Restored || res.Serving != "1.0" || b.gates != 1 || b.container("web") != id {
			t.Errorf("%+v, %d gates", res, b.gates)
		}
	})
	t.Run("first installation, sick", func(t *testing.T) {
		b := newBench(t)
		text := strings.ReplaceAll(b.web("1.0", "    command: [late]\n"), "APP_VERSION", "APP_DELAY: 1h\n      APP_VERSION")
		one := b.release("1.0", map[string]string{"compose.yaml": text}, "")
		b.half(one, nil)
		res := b.run(recovery(b, one, nil))
		failsWith(t, res, "the deployment process died")
		if b.containers() != 0 || !strings.Contains(res.Message, "was removed") {
			t.Errorf("%+v", res)
		}
	})
	t.Run("nothing there", func(t *testing.T) {
		b := newBench(t)
		one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
		res := b.run(recovery(b, one, nil))
		failsWith(t, res, "the deployment process died")
		if !strings.Contains(res.Message, "nothing serves") {
			t.Errorf("%+v", res)
		}
	})
}
