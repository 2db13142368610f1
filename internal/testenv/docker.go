package testenv

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// dockerTimeout bounds one command of the docker program.
const dockerTimeout = 5 * time.Minute

// RunDocker runs the docker program and returns what it printed on standard
// output. Its error quotes standard error.
func RunDocker(ctx context.Context, args ...string) (string, error) {
	return runDocker(ctx, nil, args...)
}

func runDocker(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = stdin, &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run docker %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// CheckDocker returns an error when no Docker engine answers.
func CheckDocker(ctx context.Context) error {
	_, err := RunDocker(ctx, "version", "--format", "{{.Server.Version}}")
	return err
}

// Docker skips the test when no Docker engine answers, and fails it when the
// environment variable CI is set.
func Docker(t testing.TB) {
	t.Helper()
	if err := CheckDocker(context.Background()); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("no Docker engine: %v", err)
		}
		t.Skipf("no Docker engine: %v", err)
	}
}

// DockerOutput runs the docker program and returns its output; an error fails
// the test.
func DockerOutput(t testing.TB, args ...string) string {
	t.Helper()
	out, err := RunDocker(context.Background(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// BuildAppImage makes the image ref, which holds nothing but the static test
// application (see testapp) as /app. It listens on port 8080, has a health
// check that asks every interval, and answers with version. An interval of 0
// leaves the health check out. All such images share their one layer; only what
// they say about it differs.
func BuildAppImage(ctx context.Context, ref, version string, interval time.Duration) error {
	layer, err := appLayer(ctx)
	if err != nil {
		return err
	}
	args := []string{"import", "--change", `ENTRYPOINT ["/app"]`, "--change", "EXPOSE 8080", "--change", "ENV APP_VERSION=" + version}
	if interval > 0 {
		args = append(args, "--change",
			fmt.Sprintf(`HEALTHCHECK --interval=%s --timeout=30s --retries=3 CMD ["/app","health"]`, interval))
	}
	_, err = runDocker(ctx, bytes.NewReader(layer), append(args, "-", ref)...)
	return err
}

// appLayer returns the archive with the test application, which is built once
// and kept in the user's cache directory.
func appLayer(ctx context.Context) ([]byte, error) {
	binary, err := BuildApp(ctx)
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	err = errors.Join(
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "app", Mode: 0o755, Size: int64(len(content))}),
		func() error { _, err := tw.Write(content); return err }(),
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}),
		tw.Close(),
	)
	return archive.Bytes(), err
}

// BuildApp returns the program inside the test images.
func BuildApp(ctx context.Context) (string, error) {
	root, err := goList(ctx, "{{.Dir}}", productModule)
	if err != nil {
		return "", err
	}
	source, err := os.ReadFile(filepath.Join(root, "internal", "testenv", "testapp", "main.go"))
	if err != nil {
		return "", fmt.Errorf("read the test application: %w", err)
	}
	return buildCached(ctx, program{
		name: "app", pkg: productModule + "/internal/testenv/testapp", ldflags: "-s -w", key: string(source),
	})
}

// RemoveImage removes the image ref and the containers made of it; one that is
// missing is no error. Without its containers' end it would only lose its name.
func RemoveImage(ctx context.Context, ref string) error {
	ids, err := RunDocker(ctx, "container", "ls", "--all", "--quiet", "--filter", "ancestor="+ref)
	if err == nil && ids != "" {
		_, err = RunDocker(ctx, append([]string{"container", "rm", "--force", "--volumes"}, strings.Fields(ids)...)...)
	}
	if err != nil {
		return err
	}
	_, err = RunDocker(ctx, "image", "rm", "--force", ref)
	if err != nil && strings.Contains(err.Error(), "No such image") {
		return nil
	}
	return err
}

// AppImage returns an image of the test application that answers with version
// and checks its health once a second. The tests of a process share it; Main
// removes it.
func AppImage(t testing.TB, version string) string {
	t.Helper()
	return AppImageWith(t, version, time.Second)
}

// AppImageWith is AppImage with another interval between two health checks; 0
// is an image without health check.
func AppImageWith(t testing.TB, version string, interval time.Duration) string {
	t.Helper()
	ref, err := appImages.ref(version, interval)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// appImages are the images that this process has made.
var appImages images

type images struct {
	mu   sync.Mutex
	refs map[string]string
}

func (i *images) ref(version string, interval time.Duration) (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	key := version + " " + interval.String()
	if ref := i.refs[key]; ref != "" {
		return ref, nil
	}
	ref := "wrktalk-test-" + uniqueName() + ":" + version
	done, err := claimDocker(claimedImage, ref)
	if err != nil {
		return "", err
	}
	if err := BuildAppImage(context.Background(), ref, version, interval); err != nil {
		return "", err
	}
	AtExit(func() {
		if RemoveImage(context.Background(), ref) == nil {
			done()
		}
	})
	if i.refs == nil {
		i.refs = map[string]string{}
	}
	i.refs[key] = ref
	return ref, nil
}

// ComposeProject returns a name for a Compose project that no other test
// uses. Its containers, networks and volumes are removed at the end of the test.
func ComposeProject(t testing.TB) string {
	t.Helper()
	name := "wt" + uniqueName()
	done, err := claimDocker(claimedProject, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveComposeProject(context.Background(), name); err != nil {
			t.Error(err)
			return
		}
		done()
	})
	return name
}

// dockerClaims is a directory with one file for each thing that this process has
// the engine hold. When the process dies, the next one removes them: networks
// above all, of which an engine has few.
var dockerClaims struct {
	once sync.Once
	dir  *ownedDir
	err  error
}

const claimsPrefix = "wrktalk-docker-"

// How the files are called, before the name of the thing.
const (
	claimedProject = "project="
	claimedImage   = "image="
)

// claimDocker notes that this process is about to make a thing; done is called
// when it is gone.
func claimDocker(kind, name string) (done func(), err error) {
	c := &dockerClaims
	c.once.Do(func() {
		if c.dir, c.err = newOwnedDir(claimsPrefix); c.err != nil {
			return
		}
		AtExit(func() {
			// What could not be removed is left to the next process.
			if left, _ := filepath.Glob(filepath.Join(c.dir.path, "*=*")); len(left) == 0 {
				c.dir.remove()
			}
		})
	})
	if c.err != nil {
		return nil, c.err
	}
	file := filepath.Join(c.dir.path, kind+name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return nil, err
	}
	return func() { os.Remove(file) }, nil
}

// removeClaimed removes what a dead process had the engine hold, as far as that
// goes: an engine that is away keeps it.
func removeClaimed(dir string) {
	for kind, remove := range map[string]func(context.Context, string) error{
		claimedProject: RemoveComposeProject, claimedImage: RemoveImage,
	} {
		files, _ := filepath.Glob(filepath.Join(dir, kind+"*"))
		for _, file := range files {
			_ = remove(context.Background(), strings.TrimPrefix(filepath.Base(file), kind))
		}
	}
}

// RemoveComposeProject removes the containers, networks and volumes that carry
// the label of the Compose project name, running or not.
func RemoveComposeProject(ctx context.Context, name string) error {
	filter := "label=com.docker.compose.project=" + name
	var errs []error
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"container", "ls", "--all", "--quiet"}, []string{"container", "rm", "--force", "--volumes"}},
		{[]string{"network", "ls", "--quiet"}, []string{"network", "rm"}},
		{[]string{"volume", "ls", "--quiet"}, []string{"volume", "rm", "--force"}},
	} {
		ids, err := RunDocker(ctx, append(kind.list, "--filter", filter)...)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if ids == "" {
			continue
		}
		if _, err := RunDocker(ctx, append(kind.remove, strings.Fields(ids)...)...); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// uniqueName returns a short random text fit for any name.
func uniqueName() string { return strings.ToLower(rand.Text()[:10]) }

// ComposeCLI returns the standard `docker compose` as a program of its own,
// built from the module that wrktalk-deploy links. It is built once and kept in
// the user's cache directory.
func ComposeCLI(t testing.TB) string {
	t.Helper()
	path, err := BuildComposeCLI(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// BuildComposeCLI is ComposeCLI for callers without a test.
func BuildComposeCLI(ctx context.Context) (string, error) {
	const module = "github.com/docker/compose/v2"
	version, err := goList(ctx, "{{.Version}}", module)
	if err != nil {
		return "", err
	}
	return buildCached(ctx, program{name: "docker-compose", pkg: module + "/cmd", ldflags: "-s -w", key: version})
}
