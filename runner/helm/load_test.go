package helm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

const tinyChart = "apiVersion: v2\nname: app\nversion: 1.0.0\n"

func TestFindChart(t *testing.T) {
	for name, c := range map[string]struct {
		files      []string
		want, fail string
	}{
		"root":                {[]string{"Chart.yaml"}, ".", ""},
		"chart":               {[]string{"chart/Chart.yaml"}, "chart", ""},
		"chart before others": {[]string{"chart/Chart.yaml", "a/Chart.yaml", "Chart.yaml"}, "chart", ""},
		"root before others":  {[]string{"Chart.yaml", "a/Chart.yaml"}, ".", ""},
		"first-level":         {[]string{"README", "wrktalk-2.5.0/Chart.yaml"}, "wrktalk-2.5.0", ""},
		"two":                 {[]string{"a/Chart.yaml", "b/Chart.yaml"}, "", "several (a, b)"},
		"beside files":        {[]string{"README", "values.yaml", "a/Chart.yaml", "b/Chart.yaml"}, "", "several (a, b): store one alone, or name the one to deploy chart/"},
		"second-level":        {[]string{"a/b/Chart.yaml", "a/README"}, "a/b", ""},
		"first before second": {[]string{"a/b/Chart.yaml", "c/Chart.yaml", "c/charts/d/Chart.yaml"}, "c", ""},
		"two of the second":   {[]string{"a/b/Chart.yaml", "c/d/Chart.yaml"}, "", "several (a/b, c/d)"},
		"third level":         {[]string{"a/b/c/Chart.yaml"}, "", "there is one in a/b/c, so pack that directory"},
		"hidden beside":       {[]string{".github/Chart.yaml", "a/Chart.yaml", "__MACOSX/a/._Chart.yaml"}, "a", ""},
		"hidden alone":        {[]string{".deploy/Chart.yaml", "README"}, ".deploy", ""},
		"packed":              {[]string{"README", "app-1.0.0.tgz", "__MACOSX/._app-1.0.0.tgz"}, "app-1.0.0.tgz", ""},
		"directory first":     {[]string{"a/Chart.yaml", "db-1.0.0.tgz"}, "a", ""},
		"two packed":          {[]string{"app-1.0.0.tgz", "db-1.0.0.tgz"}, "", "several (app-1.0.0.tgz, db-1.0.0.tgz)"},
		"packed below":        {[]string{"README", "out/app-1.0.0.tgz"}, "out/app-1.0.0.tgz", ""},
		"packed too deep":     {[]string{"a/b/c/app-1.0.0.tgz"}, "", "there is one in a/b/c"},
		"none":                {[]string{"README"}, "", "no Chart.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range c.files {
				write(t, filepath.Join(dir, f), tinyChart)
			}
			root, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			got, err := findChart(root)
			if got != c.want || (err == nil) != (c.fail == "") || err != nil && !strings.Contains(err.Error(), c.fail) {
				t.Errorf("found %q, %v", got, err)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func TestLoadChart(t *testing.T) {
	dir := t.TempDir()
	chart := filepath.Join(dir, "chart")
	write(t, filepath.Join(chart, "Chart.yaml"), "\xEF\xBB\xBF"+tinyChart)
	write(t, filepath.Join(chart, ".helmignore"), "*.big\nskipped/\n")
	write(t, filepath.Join(chart, "templates/a.yaml"), "a: b")
	write(t, filepath.Join(chart, "files/x.big"), strings.Repeat("x", 6<<20))
	write(t, filepath.Join(chart, "skipped/y"), "y")
	write(t, filepath.Join(chart, "shared/lib.txt"), "lib")
	link(t, "../shared/lib.txt", filepath.Join(chart, "files/link.txt"))
	link(t, "../shared", filepath.Join(chart, "files/dir"))
	c, err := loadChart(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range c.Raw {
		names = append(names, f.Name)
	}
	const want = ".helmignore Chart.yaml files/dir/lib.txt files/link.txt shared/lib.txt templates/a.yaml"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("loaded %s", got)
	}
}

// TestPackedChart loads a chart as `helm package` packs it, with a dependency that is
// packed as well.
func TestPackedChart(t *testing.T) {
	db := testenv.Tarball(t, map[string]string{"db/Chart.yaml": "apiVersion: v2\nname: db\nversion: 0.1.0\n"})
	packed := testenv.Tarball(t, map[string]string{
		"app/Chart.yaml":          tinyChart + "dependencies: [{name: db, version: 0.1.0}]\n",
		"app/charts/db-0.1.0.tgz": string(db),
		"app/templates/a.yaml":    "a: b",
	})
	dir := t.TempDir()
	write(t, filepath.Join(dir, "app-1.0.0.tgz"), string(packed))
	c, err := loadChart(dir)
	if err != nil || c.Name() != "app" || len(c.Templates) != 1 || len(c.Dependencies()) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	write(t, filepath.Join(dir, "app-1.0.0.tgz"), "not packed at all")
	if _, err := loadChart(dir); err == nil || !strings.Contains(err.Error(), "load the chart of app-1.0.0.tgz") {
		t.Error(err)
	}
}

func TestHostileFiles(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "top: secret\n")
	for name, c := range map[string]struct {
		make func(dir string)
		want string
	}{
		"absolute link":       {func(d string) { link(t, secret, d+"/templates/x.yaml") }, "x.yaml is a symbolic link that leads out"},
		"relative link":       {func(d string) { link(t, "../../../"+filepath.Base(filepath.Dir(secret))+"/secret", d+"/files/x") }, "files/x is a symbolic link that leads out"},
		"lock file":           {func(d string) { link(t, secret, d+"/Chart.lock") }, "Chart.lock is a symbolic link that leads out"},
		"link to parent":      {func(d string) { link(t, "..", d+"/charts/up") }, "symbolic link"},
		"link to the chart":   {func(d string) { link(t, ".", d+"/files/self") }, "symbolic link"},
		"link cycle":          {func(d string) { link(t, "b", d+"/a"); link(t, "a", d+"/b") }, "symbolic link"},
		"dangling":            {func(d string) { link(t, "nothing", d+"/a") }, "leads out of the chart or nowhere"},
		"link to .helmignore": {func(d string) { link(t, secret, d+"/.helmignore") }, "helmignore"},
		"6 MB":                {func(d string) { write(t, d+"/files/x", strings.Repeat("x", 6<<20)) }, "files/x is larger than 5242880 bytes"},
		"deep":                {func(d string) { write(t, d+strings.Repeat("/d", 50)+"/x", "x") }, "deeper than 40"},
		"aliases": {func(d string) {
			bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
			for c := 'b'; c < 'k'; c++ {
				bomb += string(c) + ": &" + string(c) + " [" + strings.TrimSuffix(strings.Repeat("*"+string(c-1)+",", 9), ",") + "]\n"
			}
			write(t, d+"/values.yaml", bomb)
		}, "values.yaml"},
		"not a chart": {func(d string) { write(t, d+"/Chart.yaml", "{{") }, "Chart.yaml"},
		"library":     {func(d string) { write(t, d+"/Chart.yaml", tinyChart+"type: library\n") }, `of type "library"`},
		"missing dependency": {func(d string) {
			write(t, d+"/Chart.yaml", tinyChart+"dependencies:\n- {name: db, version: 1, repository: 'https://example.test'}\n")
		}, "helm dependency build"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "chart/Chart.yaml"), tinyChart)
			c.make(filepath.Join(dir, "chart"))
			_, err := loadChart(dir)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
			if err != nil && strings.Contains(err.Error(), "top: secret") {
				t.Error("the error shows the file")
			}
		})
	}
}

func TestSchemas(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"plain":        {`{"type":"object","properties":{"a":{"$ref":"#/definitions/x"}},"definitions":{"x":{"type":"string"}}}`, ""},
		"draft":        {`{"$schema":"http://json-schema.org/draft-07/schema#","type":"object"}`, ""},
		"own id":       {`{"$id":"https://example.test/s.json","$ref":"#/$defs/x","$defs":{"x":{"type":"object"}}}`, ""},
		"urn":          {`{"$ref":"urn:example:x"}`, ""},
		"file":         {`{"$ref":"file:///etc/passwd"}`, "file:///etc/passwd, outside of the chart"},
		"device":       {`{"$ref":"file:///dev/zero"}`, "outside of the chart"},
		"relative":     {`{"properties":{"a":{"$ref":"other.json"}}}`, "outside of the chart"},
		"http":         {`{"$ref":"http://127.0.0.1:1/x"}`, "http://127.0.0.1:1/x, outside of the chart"},
		"meta-schema":  {`{"$schema":"https://example.test/meta"}`, "outside of the chart"},
		"dynamic":      {`{"$dynamicRef":"https://example.test/x"}`, "outside of the chart"},
		"by the id":    {`{"$id":"file:///etc/","properties":{"a":{"$ref":"passwd"}}}`, "file:///etc/passwd, outside of the chart"},
		"not JSON":     {`{`, "EOF"},
		"not a schema": {`{"type":7}`, "type"},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkSchema([]byte(c.text))
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}
