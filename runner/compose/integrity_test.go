package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// TestKeptBundleWasChanged: a kept bundle is what it is called, or is not used;
// only what served before is brought back in any case.
func TestKeptBundleWasChanged(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0", map[string]string{
		"compose.yaml": "include: [more.yaml]\n" + b.web("1.0", "    env_file: [x.env]\n"), "more.yaml": "x-nothing: 1\n", "x.env": "A=1\n", "data": "x",
	}, "")
	two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", "")}, "")
	bad := b.release("3.0", map[string]string{"compose.yaml": b.web("3.0", "    command: [crash]\n")}, "")
	b.up(one, nil)
	b.up(two, kept(one))
	dir := filepath.Join(b.workdir, protocol.BundlesDir, one.Bundle())
	change := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	change("data", "a container may")
	b.up(kept(one), kept(two))
	b.up(two, kept(one))
	if strings.Contains(b.log, "was changed") {
		t.Error("data that a container wrote counts as a change")
	}

	for name, text := range map[string]string{
		"compose.yaml": b.web("evil", ""), "more.yaml": "x-nothing: 2\n", "x.env": "A=evil\n",
	} {
		was, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		change(name, text)
		res := b.run(b.job(kept(one), kept(two)))
		failsWith(t, res, name+" of the kept release 1.0 was changed on this host", "deploy the release from the database")
		if res.Changed {
			t.Errorf("%+v", res)
		}
		change(name, string(was))
	}

	change("compose.yaml", b.web("evil", ""))
	change("docker-compose.yml", b.web("evil", "")) // never looked at: compose.yaml goes first
	b.up(one, kept(two))
	if got := b.ask("web", "/"); got != "1.0" || !strings.Contains(b.log, "compose.yaml, docker-compose.yml of the kept release 1.0 had been changed") {
		t.Errorf("web answers %q", got)
	}

	change("compose.yaml", b.web("by hand", ""))
	res := b.run(b.job(bad, kept(one)))
	if !res.Restored || b.ask("web", "/") != "by hand" || !strings.Contains(b.log, "used all the same") {
		t.Errorf("%+v", res)
	}
}
