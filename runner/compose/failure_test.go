package compose

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/policy"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// failing are services that do not come up, each for one reason.
var failing = []struct {
	name, service string
	want          []string
}{
	{"crash", "    command: [crash, '3']\n    environment: {APP_LAST_WORDS: 'no disk'}\n", []string{`service "bad" exited with code 3`, "no disk"}},
	{"unhealthy", "    command: [sick]\n    healthcheck: {test: [CMD, /app, health], interval: 100ms, retries: 2}\n", []string{`service "bad" is unhealthy`, "503"}},
	{"given up", "    command: [crash]\n    restart: on-failure:1\n", []string{`service "bad" exited with code 1`}},
	{"no such program", "    entrypoint: [/missing]\n", []string{"/missing"}},
}

func TestFailureRestoresThePrevious(t *testing.T) {
	t.Parallel()
	for _, c := range failing {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "    volumes: ['./motd:/motd:ro']\n"), "motd": "one"}, "")
			b.up(one, nil)
			if err := os.RemoveAll(one.PayloadDir); err != nil {
				t.Fatal(err)
			}
			two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "  bad:\n    image: "+b.image+"\n"+c.service)}, "")
			job := b.job(two, kept(one))
			job.Compose.StableFor = 10 * time.Second // a slow machine takes a while between two crashes
			res := b.run(job)
			failsWith(t, res, append(c.want, "release 2.0 did not come up")...)
			if !res.Restored || res.Serving != "1.0" || !res.Changed || !strings.Contains(res.Message, "release 1.0 was restored") {
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
			if link, _ := os.Readlink(filepath.Join(b.workdir, "current")); link != protocol.BundlesDir+"/"+one.Bundle() {
				t.Errorf("current is %q", link)
			}
		})
	}
}

// TestCrashLoop: what crashes again and again has until the timeout, and then is what
// is said to be wrong, also where the others wait for it.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]string{
		"alone":   "  bad:\n",
		"awaited": "    depends_on:\n      bad: {condition: service_healthy}\n  bad:\n    healthcheck: {test: [CMD, /app, health], interval: 10s, retries: 100}\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
			b.up(one, nil)
			two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", more+"    image: "+b.image+"\n    command: [crash, '7']\n    restart: always\n")}, "")
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			var waiting sync.WaitGroup
			b.onEvent("bringing up release", func() {
				waiting.Go(func() {
					b.awaitRestarts(ctx, "bad", 5)
					cancel(deploy.ErrTimeout)
				})
			})
			job := b.job(two, kept(one))
			job.Compose.StableFor = 10 * time.Second // a slow machine takes a while to crash for the first time
			res := b.runContext(ctx, job)
			cancel(nil)
			waiting.Wait()
			failsWith(t, res, "release 2.0 was not up after", `service "bad" keeps restarting`, "last exit code 7")
			if len(res.LogTail) == 0 || !strings.Contains(fmt.Sprint(res.LogTail), "cannot go on") {
				t.Errorf("log tail %q", res.LogTail)
			}
			if !res.Restored || b.ask("web", "/") != "1.0" {
				t.Errorf("not restored: %+v", res)
			}
		})
	}
}

func TestFailedFirstInstallationIsRemoved(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
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
	t.Parallel()
	b := newFixture(t)
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
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	b.up(one, nil)
	if err := os.RemoveAll(filepath.Join(b.workdir, protocol.BundlesDir, one.Bundle())); err != nil {
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
	t.Parallel()
	b := newFixture(t)
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
			cancel(deploy.ErrTimeout)
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
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	b.up(one, nil)
	text := strings.ReplaceAll(b.web("2.0", "    command: [sick]\n"), "retries: 3", "retries: 1000")
	two := b.release("2.0", map[string]string{"compose.yaml": text}, "")

	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("the deployment was interrupted"))
	res := b.runContext(ctx, b.job(two, kept(one)))
	failsWith(t, res, "interrupted")
	if res.Changed || res.Serving != "1.0" {
		t.Errorf("%+v", res)
	}
}

func TestSecretsAreMasked(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	const secret = "pa$$w0rd-for-all"
	rel := b.release("1.0", map[string]string{"compose.yaml": `
services:
  web:
    image: ` + b.image + `
    command: [crash]
    environment: {APP_LAST_WORDS: "login with ${DB_PASSWORD} at postgres://bob:other@db/"}
    container_name: ${CONTAINER_KEY}
`}, "DB_PASSWORD='"+secret+"'\nCONTAINER_KEY=wt"+b.project+"\n")
	job := b.job(rel, nil)
	job.Compose.StableFor = time.Minute // a slow machine takes a while to crash
	res := b.run(job)
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
	t.Parallel()
	b := newFixture(t)
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
		// refused is what the policy refuses.
		refused []policy.Key
	}{
		{"no file", map[string]string{"README": "", "a/x": "", "b/c/d/compose.yaml": web}, "", []string{"find the Compose file", "README, a/, b/"}, nil},
		{"not yaml", map[string]string{"compose.yaml": "a: [\n"}, "", []string{"compose.yaml"}, nil},
		{"unknown key", map[string]string{"compose.yaml": "services: {web: {imagge: x}}\n"}, "", []string{"imagge"}, nil},
		{"no service", map[string]string{"compose.yaml": "services: {web: {image: x, profiles: [a]}}\n"}, "", []string{"no service"}, nil},
		{"missing variable", map[string]string{"compose.yaml": "services: {web: {image: '${IMAGE:?say which}'}}\n"}, "", []string{"IMAGE", "say which"}, nil},
		{"bad env", map[string]string{"compose.yaml": web}, "A=1\nB !=secret-text\n", []string{"line 2"}, nil},
		{"no env", map[string]string{"compose.yaml": web + "    env_file: .env\n"}, "", []string{"no env in the database, and no file .env"}, nil},
		{"missing env file", map[string]string{"compose.yaml": web + "    env_file: sub/x.env\n"}, "", []string{"no file sub/x.env"}, nil},
		{"env file outside", map[string]string{"compose.yaml": web + "    env_file: ../x.env\n"}, "", []string{"outside of the release"}, nil},
		{"provider", map[string]string{"compose.yaml": web + "  p:\n    provider: {type: model}\n"}, "", []string{`service "p" has a provider`}, nil},
		{"models", map[string]string{"compose.yaml": web + "models: {m: {model: x}}\n"}, "", []string{"models (m)"}, nil},
		{"include outside", map[string]string{"compose.yaml": "include: ['" + outside + "']\n" + web}, "", []string{"include", "policy.host_paths refuses"}, []policy.Key{policy.HostPaths}},
		{"include up", map[string]string{"compose.yaml": "include: ['../x.yaml']\n" + web}, "", []string{"outside of the release"}, nil},
		{"include by variable", map[string]string{"compose.yaml": "include: ['${WHERE}/x.yaml']\n" + web}, "WHERE=../..\n", []string{"outside of the release"}, nil},
		{"include remote", map[string]string{"compose.yaml": "include: ['oci://example.org/x']\n" + web}, "", []string{"remote resource"}, nil},
		{"nested include", map[string]string{"compose.yaml": "include: [a/c.yaml]\n" + web, "a/c.yaml": "include: [../../x.yaml]\n"}, "", []string{"outside of the release"}, nil},
		{"extends outside", map[string]string{"compose.yaml": web + "    extends: {file: " + outside + ", service: web}\n"}, "", []string{"services.web.extends", "policy.host_paths refuses"}, []policy.Key{policy.HostPaths}},
		{"secret file up", map[string]string{"compose.yaml": web + "secrets: {s: {file: ../s}}\n"}, "", []string{"secrets.s.file"}, nil},
		{"secret file missing", map[string]string{"compose.yaml": web + "    secrets: [s]\nsecrets: {s: {file: ./s}}\n"}, "", []string{`secret "s"`, "no file s"}, nil},
		{"config of the host missing", map[string]string{"compose.yaml": web + "    configs: [c]\nconfigs: {c: {file: /nowhere/c}}\n"}, "", []string{`config "c"`, "no file /nowhere/c"}, nil},
		{"secret without variable", map[string]string{"compose.yaml": web + "    secrets: [s]\nsecrets: {s: {environment: PIN}}\n"}, "A=1\n", []string{"no variable PIN"}, nil},
		{"secret of a read-only service", map[string]string{"compose.yaml": web + "    read_only: true\n    secrets: [s]\nsecrets: {s: {environment: PIN}}\n"}, "PIN=1234\n", []string{"read_only"}, nil},
		{"external secret", map[string]string{"compose.yaml": web + "    secrets: [s]\nsecrets: {s: {external: true}}\n"}, "", []string{"external"}, nil},
		{"env as secret", map[string]string{"compose.yaml": web + "    secrets: [s]\nsecrets: {s: {file: .env}}\n"}, "A=1\n", []string{"it is .env"}, nil},
		{"env as mount", map[string]string{"compose.yaml": web + "    volumes: ['./.env:/e:ro']\n"}, "A=1\n", []string{"mounts .env"}, nil},
		{"label file up", map[string]string{"compose.yaml": web + "    label_file: ../s\n"}, "", []string{"label_file"}, nil},
		{"alias bomb", map[string]string{"compose.yaml": bomb + web}, "", []string{"YAML aliases"}, nil},
		{"large file", map[string]string{"compose.yaml": web + "#" + strings.Repeat("x", maxComposeFile)}, "", []string{"larger than 4 MiB"}, nil},
		{"build", map[string]string{"compose.yaml": web + "  built:\n    build: .\n"}, "", []string{"the release has no Dockerfile"}, nil},
		{"image never", map[string]string{"compose.yaml": "services: {web: {image: 'wrktalk.invalid/none:1', pull_policy: never}}\n"}, "", []string{"wrktalk.invalid/none:1", "forbids"}, nil},
		{"image missing", map[string]string{"compose.yaml": "services: {web: {image: '127.0.0.1:9/none:1'}}\n"}, "", []string{`pull image 127.0.0.1:9/none:1 of service "web"`}, nil},
		{"privileged", map[string]string{"compose.yaml": web + "    privileged: true\n"}, "", []string{`service "web", privileged`, "policy.privileged refuses"}, []policy.Key{policy.Privileged}},
		{"the agent's own", map[string]string{"compose.yaml": web + "    volumes: ['" + b.workdir + "/history.json:/x:ro']\n"}, "", []string{"keeps for itself"}, nil},
		{"deep", map[string]string{"compose.yaml": web + "x-deep: " + strings.Repeat("{a: ", 9000) + "1" + strings.Repeat("}", 9000) + "\n"}, "", []string{"nest deeper than"}, nil},
		{"two bases", map[string]string{"compose.yaml": "services: {web: {}}\n"}, "", []string{"web"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := b.job(b.release("2.0", c.files, c.env), kept(one))
			job.Policy.Refused = c.refused
			res := b.run(job)
			failsWith(t, res, c.want...)
			if res.Changed || res.Restored || res.Serving != "1.0" || b.approvals != 0 {
				t.Errorf("touched: %+v, %d approvals", res, b.approvals)
			}
			if strings.Contains(b.log+res.Error, "secret-text") {
				t.Error("a line of the env shows")
			}
			if b.container("web") != before {
				t.Error("the running container was replaced")
			}
			if got := b.bundles(); !slices.Equal(got, []string{one.Bundle()}) {
				t.Errorf("bundles left: %v", got)
			}
		})
	}
}

func TestPulls(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
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
	t.Parallel()
	b := newFixture(t)
	rel := b.release("1.0", map[string]string{
		"compose.yaml":          "include:\n  - path: parts/worker.yaml\n" + b.web("1.0", "    extends: {file: common/base.yaml, service: base}\n    label_file: common/labels\n"),
		"compose.override.yaml": "services: {web: {environment: {OVERRIDE: 'yes'}}}\n",
		"common/base.yaml":      "services: {base: {environment: {BASE: from-base}}}\n",
		"common/labels":         "some.label=x\n",
		"parts/worker.yaml":     "include: [../common/third.yaml]\nservices: {worker: {image: " + b.image + ", stop_grace_period: 1s, env_file: [worker.env]}}\n",
		"parts/worker.env":      "WORKER=1\n",
		"common/third.yaml":     "services: {third: {image: " + b.image + ", stop_grace_period: 1s}}\n",
	}, "")
	res := b.up(rel, nil)
	if b.containers() != 3 || b.env("web", "BASE") != "from-base" || b.env("web", "OVERRIDE") != "404" {
		t.Errorf("%d containers, BASE=%s, OVERRIDE=%s", b.containers(), b.env("web", "BASE"), b.env("web", "OVERRIDE"))
	}
	if !strings.Contains(b.log+res.Message, "compose.override.yaml is not used") {
		t.Error("nothing says that the override file is not used")
	}
}

func TestRecover(t *testing.T) {
	t.Parallel()
	recovery := func(b *fixture, rel, prev *protocol.Release) protocol.Job {
		job := b.job(rel, prev)
		job.Action = protocol.ActionRecover
		return job
	}
	t.Run("already up", func(t *testing.T) {
		b := newFixture(t)
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
		if !res.Succeeded || res.Serving != "2.0" || b.approvals != 0 || b.container("web") != id {
			t.Errorf("%+v, %d approvals", res, b.approvals)
		}
	})
	t.Run("not begun", func(t *testing.T) {
		b := newFixture(t)
		one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
		two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "")}, "")
		b.up(one, nil)
		id := b.container("web")
		res := b.run(recovery(b, two, kept(one)))
		failsWith(t, res, "the deployment process died")
		if !res.Restored || res.Serving != "1.0" || b.approvals != 1 || b.container("web") != id {
			t.Errorf("%+v, %d approvals", res, b.approvals)
		}
	})
	t.Run("first installation, unhealthy", func(t *testing.T) {
		b := newFixture(t)
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
		b := newFixture(t)
		one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
		res := b.run(recovery(b, one, nil))
		failsWith(t, res, "the deployment process died")
		if !strings.Contains(res.Message, "nothing serves") {
			t.Errorf("%+v", res)
		}
	})
}
