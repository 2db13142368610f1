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
// leaves the health check out.
func BuildAppImage(ctx context.Context, ref, version string, interval time.Duration) error {
	binary, err := appBinary(ctx, version)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	for _, f := range []struct {
		name string
		mode int64
		data []byte
	}{
		{"app", 0o755, binary},
		{"tmp/", 0o1777, nil},
	} {
		typ := byte(tar.TypeReg)
		if strings.HasSuffix(f.name, "/") {
			typ = tar.TypeDir
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: typ, Name: f.name, Mode: f.mode, Size: int64(len(f.data))}); err != nil {
			return err
		}
		if _, err := tw.Write(f.data); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	args := []string{"import", "--change", `ENTRYPOINT ["/app"]`, "--change", "EXPOSE 8080"}
	if interval > 0 {
		args = append(args, "--change",
			fmt.Sprintf(`HEALTHCHECK --interval=%s --timeout=30s --retries=3 CMD ["/app","health"]`, interval))
	}
	_, err = runDocker(ctx, &archive, append(args, "-", ref)...)
	return err
}

var appBuild sync.Mutex

// appBinary returns the test application with version linked into it.
func appBinary(ctx context.Context, version string) ([]byte, error) {
	appBuild.Lock()
	defer appBuild.Unlock()
	dir, err := os.MkdirTemp("", "testapp-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "app")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version,
		"-o", file, "github.com/wrktalk/wrktalk-agent/internal/testenv/testapp")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the test application: %w: %s", err, out)
	}
	return os.ReadFile(file)
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

// AppImage makes an image of the test application that answers with version
// and checks its health once a second. It is removed at the end of the test.
func AppImage(t testing.TB, version string) string {
	return AppImageWith(t, version, time.Second)
}

// AppImageWith is AppImage with another interval between two health checks; 0
// is an image without health check.
func AppImageWith(t testing.TB, version string, interval time.Duration) string {
	t.Helper()
	ref := "wrktalk-test-" + uniqueName() + ":" + version
	done := claimDocker(t, claimedImage, ref)
	if err := BuildAppImage(context.Background(), ref, version, interval); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveImage(context.Background(), ref); err != nil {
			t.Error(err)
			return
		}
		done()
	})
	return ref
}

// ComposeProject returns a name for a Compose project that no other test
// uses. Its containers, networks and volumes are removed at the end of the test.
func ComposeProject(t testing.TB) string {
	t.Helper()
	name := "wt" + uniqueName()
	done := claimDocker(t, claimedProject, name)
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
func claimDocker(t testing.TB, kind, name string) (done func()) {
	t.Helper()
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
		t.Fatal(c.err)
	}
	file := filepath.Join(c.dir.path, kind+name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() { os.Remove(file) }
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
	const module, program = "github.com/docker/compose/v2", "github.com/docker/compose/v2/cmd"
	version, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find the version of %s: %w", module, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "wrktalk-agent")
	path := filepath.Join(dir, "docker-compose-"+strings.TrimSpace(string(version)))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	temp := path + "." + uniqueName()
	defer os.Remove(temp) // gone already when all went well
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", temp, program).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", program, err, out)
	}
	return path, os.Rename(temp, path)
}
