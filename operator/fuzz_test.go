package operator

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
)

// Whatever .dockerignore and .helmignore say, a release that is packed holds its main
// file, and what is left out by a directory is left out by each file in it.
func FuzzIgnore(f *testing.F) {
	for _, s := range []string{"", "*\n!compose.yaml\n", "**/x\n", "[", "!\n!!a", "a/../b\n/\n.\n..\n", "\ufeff# c\n  d  \n", "d/*\n!d/e", "*.md\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		for _, p := range []platform.Platform{platform.All[0], platform.All[1]} {
			if err := os.WriteFile(filepath.Join(dir, p.IgnoreFile), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := readIgnored(dir, p)
			if err != nil {
				continue
			}
			for _, d := range []string{"d", "d/e", "x"} {
				if !out.covers(d) {
					continue
				}
				for _, file := range []string{d + "/f", d + "/e/g.md"} {
					if !out.file(file, false) {
						t.Errorf("%s %q leaves out %s, but not %s", p.IgnoreFile, text, d, file)
					}
				}
			}
		}
	})
}
