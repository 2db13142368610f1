package packages

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/stateformat"
)

// Packages ask before anything of the agent is there that they could ask.
func TestPackagesKnowTheFormatOfTheState(t *testing.T) {
	t.Parallel()
	script, err := os.ReadFile("../../packaging/scripts/preinstall.sh")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^format=(\d+)$`).FindSubmatch(script)
	if m == nil || string(m[1]) != strconv.Itoa(stateformat.Current) {
		t.Errorf("preinstall.sh says %q, the agent writes format %d", m, stateformat.Current)
	}
}

// Two builds of one commit, each in a clone of its own, give the same bytes.
func TestPackagesAreReproducible(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("git", "rev-parse", "HEAD").CombinedOutput(); err != nil {
		t.Skipf("this is no clone: %s", out)
	}
	var first map[string][]byte
	for i := range 2 {
		dir := t.TempDir()
		clone, out := filepath.Join(dir, "clone"), filepath.Join(dir, "out")
		build := exec.Command("sh", "-ec", `git clone -q ../.. "$1" && umask "$4" && cd "$1" && PACKAGE_OUT="$2" scripts/packages "$3"`,
			"sh", clone, out, runtime.GOARCH, []string{"022", "077"}[i])
		if said, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		files, err := os.ReadDir(out)
		if err != nil {
			t.Fatal(err)
		}
		built := map[string][]byte{}
		for _, f := range files {
			if built[f.Name()], err = os.ReadFile(filepath.Join(out, f.Name())); err != nil {
				t.Fatal(err)
			}
		}
		if first == nil {
			first = built
			continue
		}
		if len(built) != 2 || len(first) != 2 {
			t.Errorf("the builds made %d and %d packages", len(first), len(built))
		}
		for name, data := range built {
			if !bytes.Equal(first[name], data) {
				t.Errorf("the builds differ in %s", name)
			}
		}
	}
}
