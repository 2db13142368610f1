//go:build faultinject

package durable

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fixture is two directories: a with the file f, whose content is old, and b.
type fixture struct {
	dir  string
	a, b *os.Root
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	root, dir := newRoot(t)
	for _, d := range []string{"a", "b"} {
		if err := root.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.WriteFile("a/f", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &fixture{dir: dir, a: openRoot(t, filepath.Join(dir, "a")), b: openRoot(t, filepath.Join(dir, "b"))}
}

// state lists all names, files with their content.
func (f *fixture) state(t *testing.T) string {
	t.Helper()
	all := strings.Fields(names(t, f.dir))
	for i, name := range all {
		if data, err := os.ReadFile(filepath.Join(f.dir, name)); err == nil {
			all[i] = name + "=" + string(data)
		}
	}
	return strings.Join(all, " ")
}
