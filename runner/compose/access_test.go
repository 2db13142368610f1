package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/docker/docker/api/types/system"
)

// TestAdmit: where the root of containers is another user of the host, that one may
// pass, but not look around; otherwise nobody may.
func TestAdmit(t *testing.T) {
	t.Parallel()
	own := filepath.Join(t.TempDir(), "docker.sock")
	if err := os.WriteFile(own, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		options []string
		host    string
		want    bool
	}{
		{[]string{"name=seccomp,profile=default"}, "unix:///var/run/docker.sock", false},
		{[]string{"name=seccomp,profile=default", "name=userns"}, "unix:///var/run/docker.sock", true},
		{[]string{"name=rootless"}, "unix://" + own, false},
		{[]string{"name=rootless"}, "tcp://127.0.0.1:2375", true},
	} {
		if got := remapped(system.Info{SecurityOptions: c.options}, c.host); got != c.want {
			t.Errorf("%v at %s: %v", c.options, c.host, got)
		}
	}
	p := newProject(t)
	p.keep("1", nil)
	p.mustLay("1")
	for _, others := range []bool{true, false} {
		want := map[bool]string{true: "-rwx--x--x", false: "-rwx------"}[others]
		if err := p.store.admit("p", others); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{filepath.Join(p.store.dir, projectsDir), p.store.projectPath("p")} {
			if info, err := os.Stat(dir); err != nil || fmt.Sprint(info.Mode().Perm()) != want {
				t.Errorf("%s: %v, %v", dir, info.Mode(), err)
			}
		}
		if info, err := os.Stat(p.store.path(".")); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the kept bundles: %v, %v", info.Mode(), err)
		}
	}
}
