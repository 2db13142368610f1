package testenv

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// errNoKubernetes is returned where a control plane, or another program, can be
// neither built nor found in the cache: most often for want of a network.
var errNoKubernetes = errors.New("build Kubernetes from the module proxy")

const productModule = "github.com/wrktalk/wrktalk-agent"

// BuildKubernetes returns the program that is all of a control plane; see the
// module kube beside this package. It is built once, which takes minutes, and
// kept below the user's cache directory.
func BuildKubernetes(ctx context.Context) (string, error) {
	root, err := goList(ctx, "{{.Dir}}", productModule)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "internal", "testenv", "kube")
	key := sha256.New()
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", fmt.Errorf("%w: %w", errNoKubernetes, err)
		}
		key.Write(content)
	}
	// The version that the module asks for; Helm cannot read v0.0.0.
	version, err := goListIn(ctx, dir, "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	const pkg = "k8s.io/component-base/version."
	ldflags := "-s -w -X " + pkg + "gitVersion=" + version + " -X " + pkg + "gitMajor=" + major + " -X " + pkg + "gitMinor=" + minor
	return buildCached(ctx, program{name: "kube", dir: dir, pkg: ".", ldflags: ldflags, key: string(key.Sum(nil))})
}

// BuildHelmCLI returns the standard helm program, built from the module that
// wrktalk-deploy links, once, and kept below the user's cache directory.
func BuildHelmCLI(ctx context.Context) (string, error) {
	helm, err := goList(ctx, "{{.Version}}", "helm.sh/helm/v3")
	if err != nil {
		return "", err
	}
	client, err := goList(ctx, "{{.Version}}", "k8s.io/client-go")
	if err != nil {
		return "", err
	}
	return buildCached(ctx, program{
		name: "helm", pkg: "helm.sh/helm/v3/cmd/helm", key: helm + client,
		ldflags: "-s -w -X helm.sh/helm/v3/internal/version.version=" + helm,
	})
}

// program says what to build. Where key, ldflags and the version of Go are the
// same, the result is.
type program struct{ name, dir, pkg, ldflags, key string }

// buildCached returns the path of the program, after building it where no
// earlier run did.
func buildCached(ctx context.Context, p program) (string, error) {
	key := strings.Join([]string{p.key, p.ldflags, runtime.Version(), runtime.GOARCH}, "\x00")
	path, err := cached(p.name, key, func(path string) error {
		// Other tests run meanwhile: nice, so that theirs is the processor.
		cmd := exec.CommandContext(ctx, "nice", "-n", "15", "go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath",
			"-ldflags", p.ldflags, "-o", path, p.pkg)
		cmd.Dir = p.dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", p.name, err, tail(out))
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoKubernetes, err)
	}
	return path, nil
}

func goList(ctx context.Context, format, module string) (string, error) {
	return goListIn(ctx, "", format, module)
}

func goListIn(ctx context.Context, dir, format, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", format, module)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, tail(failed.Stderr))
		}
		return "", fmt.Errorf("%w: ask for module %s: %w", errNoKubernetes, module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// tail returns the end of what a program said.
func tail(out []byte) string {
	const most = 2000
	text := strings.TrimSpace(string(out))
	if len(text) > most {
		text = "... " + text[len(text)-most:]
	}
	return text
}
