// Command prebuild builds what the tests need and would otherwise build in the
// middle of one of them: a Kubernetes control plane, Helm's program, Docker
// Compose's, the application in the test images and a tree of Debian. What was built before costs
// nothing. Where they cannot be built the tests that need them are skipped, so it
// only says so; in CI it fails.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	failed := false
	for _, p := range []struct {
		name  string
		build func(context.Context) (string, error)
	}{
		{"Kubernetes", testenv.BuildKubernetes},
		{"Helm", testenv.BuildHelmCLI},
		{"Docker Compose", testenv.BuildComposeCLI},
		{"the test application", testenv.BuildApp},
		{"a tree of Debian", testenv.BuildDebian},
	} {
		if _, err := p.build(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "prebuild: %s: %v\n", p.name, err)
			failed = true
		}
	}
	if failed && (os.Getenv("CI") != "" || ctx.Err() != nil) {
		os.Exit(1)
	}
}
