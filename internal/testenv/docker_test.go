package testenv

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// What a process had the engine hold is removed by the next one, should it die.
func TestNextProcessRemovesWhatADeadOneLeft(t *testing.T) {
	Docker(t)
	// As a process leaves it that dies: the kernel gives the lock back.
	dead, err := newOwnedDir(claimsPrefix)
	if err != nil {
		t.Fatal(err)
	}
	image, project := "wrktalk-test-"+uniqueName()+":1", "wt"+uniqueName()
	for _, claim := range []string{claimedImage + image, claimedProject + project, claimedProject + "wt-that-is-gone"} {
		if err := os.WriteFile(filepath.Join(dead.path, claim), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := BuildAppImage(t.Context(), image, "1", 0); err != nil {
		t.Fatal(err)
	}
	label := "label=com.docker.compose.project=" + project
	DockerOutput(t, "network", "create", "--label", label[len("label="):], project)
	DockerOutput(t, "container", "create", "--network", project, "--label", label[len("label="):], image)
	dead.lock.Close()

	next, err := newOwnedDir(claimsPrefix)
	if err != nil {
		t.Fatal(err)
	}
	defer next.remove()
	if _, err := os.Stat(dead.path); !os.IsNotExist(err) {
		t.Errorf("the directory of a dead owner is still there: %v", err)
	}
	for what, args := range map[string][]string{
		"containers": {"container", "ls", "--all", "--quiet", "--filter", label},
		"networks":   {"network", "ls", "--quiet", "--filter", label},
		"images":     {"image", "ls", "--quiet", image},
	} {
		out, err := RunDocker(context.Background(), args...)
		if err != nil || out != "" {
			t.Errorf("%s: %q, %v", what, out, err)
		}
	}
}
