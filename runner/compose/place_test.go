package compose

import (
	"fmt"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
)

// TestPlace: the directory with the Compose file is the project directory, whatever a
// release calls it.
func TestPlace(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	p.keep("1", map[string]string{"app/compose.yaml": "", "app/x": "1", "app/up": "->../conf/y", "conf/y": "1", "conf/in": "->../app/x"})
	p.keep("2", map[string]string{"x": "2"})
	p.mustLay("1")
	if got := tree(t, p.store.projectPath("p")); got != "beside/ beside/conf/ beside/conf/in->../../project/x beside/conf/y=1 project/ project/compose.yaml= project/up->../beside/conf/y project/x=1" {
		t.Errorf("it holds %s", got)
	}
	p.write(map[string]string{"data/db": "rows"})
	p.mustLay("2")
	if got := tree(t, p.store.projectPath("p")); got != "project/ project/compose.yaml=# 2 project/data/ project/data/db=rows project/x=2" {
		t.Errorf("it holds %s", got)
	}

	dir, to := "/w/bundles/1-ab", "/w/projects/p"
	for _, c := range []struct{ sub, path, want string }{
		{".", dir, to + "/project"},
		{".", dir + "/data", to + "/project/data"},
		{".", "-v " + dir + "/a:" + dir + "/b", "-v " + to + "/project/a:" + to + "/project/b"},
		{".", dir + "c/x", to + "/1-abc/x"},
		{".", "/w/bundles/data", to + "/data"},
		{".", "/w/bundles", to}, // never the bundles themselves
		{".", "/w/bundlesother/x", "/w/bundlesother/x"},
		{".", "/etc/x", "/etc/x"},
		{"app", dir + "/app/data", to + "/project/data"},
		{"app", dir + "/app", to + "/project"},
		{"app", dir + "/apple", to + "/beside/apple"},
		{"app", dir + "/conf/x", to + "/beside/conf/x"},
		{"app", "/w/bundles/data", to + "/data"},
	} {
		if got := (layout{c.sub}).relocated(c.path, dir, to); got != c.want {
			t.Errorf("%s with %s: %s, want %s", c.path, c.sub, got, c.want)
		}
	}
}

// TestRelocate: every path of a project is moved, wherever it is, but those of what
// is built.
func TestRelocate(t *testing.T) {
	t.Parallel()
	dir := "/w/bundles/1-ab"
	value := dir + "/x"
	p := &types.Project{
		WorkingDir: dir, ComposeFiles: []string{dir + "/compose.yaml"}, Environment: types.Mapping{"PWD": dir},
		Services: types.Services{"a": {
			Volumes: []types.ServiceVolumeConfig{{Source: dir + "/data"}}, Environment: types.MappingWithEquals{"A": &value},
			Build: &types.BuildConfig{Context: dir}, Command: types.ShellCommand{"--in=" + dir + "/in"},
			Extensions: types.Extensions{"x-a": []any{map[string]any{"b": dir}}},
		}},
		Volumes: types.Volumes{"v": {DriverOpts: types.Options{"device": dir + "/v"}}},
		Secrets: types.Secrets{"s": {File: dir + "/s"}},
	}
	relocate(p, dir, layout{"."}, "/w/projects/p")
	s := p.Services["a"]
	got := fmt.Sprint(p.WorkingDir, p.ComposeFiles, p.Environment["PWD"], s.Volumes[0].Source, *s.Environment["A"], s.Command, s.Extensions,
		p.Volumes["v"].DriverOpts["device"], p.Secrets["s"].File)
	if strings.Contains(got, dir) || strings.Count(got, "/w/projects/p/project") != 9 || s.Build.Context != dir {
		t.Error(got, s.Build.Context)
	}
}
