package compose

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// patience is how long anything may take before it is taken never to end. It is
// no measure of speed.
const patience = 10 * time.Minute

var errDenied = errors.New("maintenance could not be entered")

// fixture is one project on the real engine.
type fixture struct {
	t         *testing.T
	project   string
	workdir   string
	image     string
	approvals int
	deny      error // what the runner answers
	events    []task.Event
	log       string
	// watchers see the events as they come; one that returns true has had its own.
	watchers []func(task.Event) bool
	onOutput func(string) // sees what Compose says, a line at a time; or nil
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	testenv.Docker(t)
	return &fixture{
		t: t, project: testenv.ComposeProject(t), workdir: filepath.Join(t.TempDir(), "work"),
		image: testenv.AppImageWith(t, "image", 0),
	}
}

// web is a service that serves version and has a health check.
func (b *fixture) web(version, more string) string {
	return fmt.Sprintf(`
services:
  web:
    image: %s
    environment:
      APP_VERSION: "%s"
    ports: ["127.0.0.1::8080"]
    stop_grace_period: 1s
    healthcheck:
      test: ["CMD", "/app", "health"]
      interval: 200ms
      timeout: 30s
      retries: 3
%s`, b.image, version, more)
}

// release writes a release's payload and env to a staging directory of its own.
func (b *fixture) release(version string, files map[string]string, env string) *protocol.Release {
	b.t.Helper()
	dir := b.t.TempDir()
	rel := &protocol.Release{
		ArtifactID: version, Version: version, SHA256: digest(version, files),
		PayloadDir: filepath.Join(dir, "payload"),
	}
	for name, text := range files {
		path := filepath.Join(rel.PayloadDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	if env != "" {
		rel.EnvFile = filepath.Join(dir, ".env")
		if err := os.WriteFile(rel.EnvFile, []byte(env), 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	return rel
}

func digest(version string, files map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(mapKeys(files)) {
		fmt.Fprint(h, version, name, files[name])
	}
	return hex.EncodeToString(h.Sum(nil))
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (b *fixture) job(rel, prev *protocol.Release) protocol.Job {
	return protocol.Job{
		Schema: protocol.Schema, Action: protocol.ActionDeploy, Kind: task.KindDeploy,
		TaskID: task.ID("task-" + rel.Version), Token: "token-" + task.Token(rel.Version),
		Release: *rel, Previous: prev,
		Timeout: patience, RestoreTimeout: patience,
		Settings: protocol.Settings{Compose: &protocol.Compose{Project: b.project, WorkingDir: b.workdir, Keep: 1, StableFor: 300 * time.Millisecond}},
	}
}

func (b *fixture) run(job protocol.Job) protocol.Result {
	b.t.Helper()
	return b.runContext(context.Background(), job)
}

func (b *fixture) runContext(ctx context.Context, job protocol.Job) protocol.Result {
	b.t.Helper()
	var out bytes.Buffer
	b.events, b.approvals = nil, 0
	report := deploy.NewReport(writer(func(p []byte) (int, error) {
		if b.onOutput != nil {
			b.onOutput(string(p))
		}
		return out.Write(p)
	}), func(e task.Event) {
		b.events = append(b.events, e)
		b.watchers = slices.DeleteFunc(b.watchers, func(w func(task.Event) bool) bool { return w(e) })
	})
	approve := func(context.Context) error { b.approvals++; return b.deny }
	res := deploy.Run(ctx, job, report, approve, New)
	b.log = out.String()
	b.t.Logf("%s %s: %+v\n%s", job.Action, job.Release.Version, res, b.log)
	return res
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// up deploys rel over prev and must succeed.
func (b *fixture) up(rel, prev *protocol.Release) protocol.Result {
	b.t.Helper()
	res := b.run(b.job(rel, prev))
	if !res.Succeeded || !res.Changed || res.Error != "" || res.Serving != rel.Version || b.approvals != 1 {
		b.t.Fatalf("deploy %s: %+v, %d approvals", rel.Version, res, b.approvals)
	}
	return res
}

// kept returns rel as the runner names it when the bundle must be in the store.
func kept(rel *protocol.Release) *protocol.Release {
	r := *rel
	r.PayloadDir = ""
	return &r
}

// container returns the id of the service's only container.
func (b *fixture) container(service string) string {
	b.t.Helper()
	ids := strings.Fields(testenv.DockerOutput(b.t, "ps", "--all", "--quiet", "--no-trunc",
		"--filter", "label=com.docker.compose.project="+b.project,
		"--filter", "label=com.docker.compose.service="+service))
	if len(ids) != 1 {
		b.t.Fatalf("service %s has %d containers", service, len(ids))
	}
	return ids[0]
}

// containers counts the project's containers.
func (b *fixture) containers() int {
	b.t.Helper()
	return len(strings.Fields(testenv.DockerOutput(b.t, "ps", "--all", "--quiet",
		"--filter", "label=com.docker.compose.project="+b.project)))
}

// ask returns what the service answers to path.
func (b *fixture) ask(service, path string) string {
	b.t.Helper()
	address := testenv.DockerOutput(b.t, "port", b.container(service), "8080")
	resp, err := http.Get("http://" + strings.Fields(address)[0] + path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprint(resp.StatusCode)
	}
	return string(body)
}

// env returns a variable of the service's container, "404" for none.
func (b *fixture) env(service, name string) string {
	b.t.Helper()
	return b.ask(service, "/env?name="+url.QueryEscape(name))
}

// contains reports the files below dir that hold text.
func contains(t *testing.T, dir, text string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && bytes.Contains(data, []byte(text)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// failsWith checks a failed result's error for each text.
func failsWith(t *testing.T, res protocol.Result, texts ...string) {
	t.Helper()
	if res.Succeeded {
		t.Fatalf("succeeded: %+v", res)
	}
	if strings.ContainsAny(res.Error+res.Message, "\n\r") {
		t.Errorf("the error is not one line: %q", res.Error)
	}
	for _, text := range texts {
		if !strings.Contains(res.Error, text) {
			t.Errorf("error %q does not mention %q", res.Error, text)
		}
	}
}

// bundles lists the kept bundles by name.
func (b *fixture) bundles() []string {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.workdir, protocol.BundlesDir))
	if err != nil {
		b.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// await waits until the service's container is healthy again.
func (b *fixture) await(service string) { b.awaitState(service, stateUp) }

// awaitState waits until the service's container has the state want.
func (b *fixture) awaitState(service string, want state) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := connect(ctx, io.Discard, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	defer e.close()
	id := b.container(service)
	messages, errs := e.api.Events(ctx, eventsOf(id))
	for {
		info, err := e.api.ContainerInspect(ctx, id)
		if err != nil {
			b.t.Fatal(err)
		}
		if assess(info, unknownExit, 0, time.Now()).state == want {
			return
		}
		select {
		case <-messages:
		case err := <-errs:
			b.t.Fatal(err)
		}
	}
}

// awaitRestarts waits until the service's container was restarted n times, or ctx
// ends.
func (b *fixture) awaitRestarts(ctx context.Context, service string, n int) {
	e, err := connect(context.Background(), io.Discard, nil)
	if err != nil {
		b.t.Error(err)
		return
	}
	defer e.close()
	messages, errs := e.api.Events(ctx, events.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+b.project))})
	for {
		list, err := e.inspect(ctx, b.project)
		if err != nil {
			if ctx.Err() == nil {
				b.t.Error(err)
			}
			return
		}
		for _, c := range list {
			if c.Labels["com.docker.compose.service"] == service && c.info.RestartCount >= n {
				return
			}
		}
		select {
		case <-messages:
		case err := <-errs:
			if ctx.Err() == nil {
				b.t.Error(err)
			}
			return
		}
	}
}

// probe is a directory to mount as /probe: the program /probe/app is there to
// ask for health, so that taking it away makes a container unhealthy.
type probe struct{ dir string }

func (b *fixture) probe() probe {
	b.t.Helper()
	dir := b.t.TempDir()
	id := testenv.DockerOutput(b.t, "create", b.image)
	defer testenv.DockerOutput(b.t, "rm", id)
	testenv.DockerOutput(b.t, "cp", id+":/app", filepath.Join(dir, "app"))
	return probe{dir}
}

// fail makes the service's container unhealthy, and waits until it is.
func (p probe) fail(b *fixture, service string) {
	b.t.Helper()
	if err := os.Rename(filepath.Join(p.dir, "app"), filepath.Join(p.dir, "away")); err != nil {
		b.t.Fatal(err)
	}
	b.awaitState(service, stateFailed)
}

func (p probe) mend(b *fixture) {
	if err := os.Rename(filepath.Join(p.dir, "away"), filepath.Join(p.dir, "app")); err != nil {
		b.t.Error(err)
	}
}

// service is one whose health the probe asks for.
func (p probe) service(b *fixture, name string) string {
	return fmt.Sprintf(`
  %s:
    image: %s
    stop_grace_period: 1s
    volumes: ["%s:/probe:ro"]
    healthcheck: {test: [CMD, /probe/app, health], interval: 200ms, timeout: 2s, retries: 2}
`, name, b.image, p.dir)
}

func eventsOf(id string) events.ListOptions {
	return events.ListOptions{Filters: filters.NewArgs(filters.Arg("container", id))}
}

// half deploys rel and dies once its containers are started, as a process
// that is killed does: nothing is awaited, recorded or restored.
func (b *fixture) half(rel, prev *protocol.Release) {
	b.t.Helper()
	done := make(chan struct{})
	died := false
	go func() {
		defer close(done)
		report := deploy.NewReport(io.Discard, func(e task.Event) {
			if e.Phase == task.PhaseWaiting {
				died = true
				runtime.Goexit()
			}
		})
		deploy.Run(context.Background(), b.job(rel, prev), report, func(context.Context) error { return nil }, New)
	}()
	<-done
	if !died {
		b.t.Fatal("the deployment ended before it could die")
	}
}
