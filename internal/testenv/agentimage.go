package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var agentImage struct {
	once sync.Once
	ref  string
	err  error
}

// AgentImage returns the agent's own image, as `make image` builds it. The tests of a
// process share it; Main removes it.
func AgentImage(t testing.TB) string {
	t.Helper()
	agentImage.once.Do(func() { agentImage.ref, agentImage.err = buildAgentImage() })
	if agentImage.err != nil {
		t.Fatal(agentImage.err)
	}
	return agentImage.ref
}

func buildAgentImage() (ref string, err error) {
	root, err := goList(context.Background(), "{{.Dir}}", productModule)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "wrktalk-image-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	ref = "wrktalk-test-agent-" + uniqueName() + ":test"
	done, err := claimDocker(claimedImage, ref)
	if err != nil {
		return "", err
	}
	AtExit(func() {
		if RemoveImage(context.Background(), ref) == nil {
			done()
		}
	})
	out, err := exec.Command("make", "-C", root, "image", "IMAGE="+ref, "CONTEXT="+filepath.Join(dir, "context")).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make image: %w\n%s", err, out)
	}
	return ref, nil
}
