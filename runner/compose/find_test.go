package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLocate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files      []string
		want, fail string
	}{
		"root":                    {[]string{"docker-compose.yml", "conf/a"}, "docker-compose.yml", ""},
		"root before directories": {[]string{"compose.yml", "app/docker-compose.yaml"}, "compose.yml", ""},
		"only directory":          {[]string{"app/compose.yaml", "README"}, "app/compose.yaml", ""},
		"beside .github":          {[]string{".github/x", "app/docker-compose.yml"}, "app/docker-compose.yml", ""},
		"beside __MACOSX":         {[]string{"__MACOSX/app/._docker-compose.yml", "__MACOSX/compose.yaml", "app/docker-compose.yml", "._app"}, "app/docker-compose.yml", ""},
		"beside a hidden one":     {[]string{".ci/compose.yaml", "app/compose.yaml"}, "app/compose.yaml", ""},
		"hidden alone":            {[]string{".deploy/compose.yaml"}, ".deploy/compose.yaml", ""},
		"beside its data":         {[]string{"app/compose.yaml", "conf/a", "docs/b/c"}, "app/compose.yaml", ""},
		"two levels down":         {[]string{"srv/app/compose.yaml", "srv/README"}, "srv/app/compose.yaml", ""},
		"first level first":       {[]string{"app/compose.yaml", "app/example/compose.yaml", "lib/test/compose.yaml"}, "app/compose.yaml", ""},
		"two":                     {[]string{"a/compose.yaml", "b/compose.yaml"}, "", "several directories of the release have one (a, b)"},
		"two of the second level": {[]string{"a/b/compose.yaml", "c/d/compose.yaml"}, "", "several directories of the release have one (a/b, c/d)"},
		"three levels down":       {[]string{"a/b/c/compose.yaml"}, "", "neither the release's root nor a directory of its first two levels has a compose.yaml"},
		"another name":            {[]string{"stack.yml", "conf/"}, "", "it holds conf/, stack.yml; if stack.yml is the one, name it compose.yaml"},
		"directory of that name":  {[]string{"compose.yaml/"}, "", "it holds compose.yaml/"},
		"nothing":                 {nil, "", "it is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range c.files {
				path := filepath.Join(dir, f)
				err := os.MkdirAll(filepath.Dir(path), 0o755)
				if err == nil && strings.HasSuffix(f, "/") {
					err = os.Mkdir(path, 0o755)
				} else if err == nil {
					err = os.WriteFile(path, nil, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			root, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			found, err := locate(root, rowEnv{})
			sub, file := found.projectDir, strings.Join(found.files, ", ")
			if file != c.want || (err == nil) != (c.fail == "") || err != nil && !strings.Contains(err.Error(), c.fail) {
				t.Errorf("found %q in %q, %v", file, sub, err)
			}
			if err == nil && sub != filepath.Dir(file) {
				t.Errorf("%s is not the directory of %s", sub, file)
			}
		})
	}
}
