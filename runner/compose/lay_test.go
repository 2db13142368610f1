package compose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// project is the directory of a project that is laid out without an engine.
type project struct {
	t     *testing.T
	store *store
	notes []string
}

func newProject(t *testing.T) *project {
	t.Helper()
	return &project{t: t, store: open(t, filepath.Join(t.TempDir(), "work"))}
}

// fill makes files below dir: a text that begins with -> is a link, a name that ends
// with / a directory.
func fill(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		switch target, isLink := strings.CutPrefix(text, "->"); {
		case err != nil:
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(file, 0o755)
		case isLink:
			err = os.Symlink(target, file)
		default:
			err = os.WriteFile(file, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// keep keeps a release of these files, and a Compose file.
func (p *project) keep(version string, files map[string]string) {
	p.t.Helper()
	payload := p.t.TempDir()
	fill(p.t, payload, files)
	if _, ok := files["app/compose.yaml"]; !ok {
		fill(p.t, payload, map[string]string{"compose.yaml": "# " + version})
	}
	rel := protocol.Release{Version: version, SHA256: "ab", PayloadDir: payload}
	if _, _, _, err := p.store.keep(context.Background(), rel, rowEnv{}); err != nil {
		p.t.Fatal(err)
	}
}

// laying prepares to lay out a release, "" for none.
func (p *project) laying(version string) *laying {
	p.t.Helper()
	name, l := "", layout{"."}
	if version != "" {
		name = protocol.BundleName(version, "ab")
		if _, err := os.Stat(filepath.Join(p.store.path(name), "app/compose.yaml")); err == nil {
			l = layout{"app"}
		}
	}
	lay, err := p.store.layOut("p", name, version, l, func(format string, args ...any) {
		p.notes = append(p.notes, fmt.Sprintf(format, args...))
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return lay
}

func (p *project) lay(version string) error {
	p.t.Helper()
	p.notes = nil
	lay := p.laying(version)
	defer lay.close()
	if err := lay.check(); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return lay.run()
}

func (p *project) mustLay(version string) {
	p.t.Helper()
	if err := p.lay(version); err != nil {
		p.t.Fatal(err)
	}
}

// path is a path in the project directory.
func (p *project) path(name string) string {
	return filepath.Join(p.store.projectPath("p"), projectDir, name)
}

// write is what a container does.
func (p *project) write(files map[string]string) {
	p.t.Helper()
	fill(p.t, p.path("."), files)
}

// tree lists what lies below dir, but its Compose file.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, file)
		if rel == "." || rel == "compose.yaml" {
			return nil
		}
		e, err := lookAt(mustRoot(t, filepath.Dir(file)), d.Name())
		switch e.Type {
		case typeDir:
			rel += "/"
		case typeLink:
			rel += "->" + e.Target
		default:
			text, _ := os.ReadFile(file)
			rel += "=" + string(text)
		}
		all = append(all, rel)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func mustRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func (p *project) wants(want string) {
	p.t.Helper()
	if got := tree(p.t, p.path(".")); got != want {
		p.t.Errorf("the project directory holds\n%s, want\n%s\n%q", got, want, p.notes)
	}
}

func inode(t *testing.T, file string) uint64 {
	t.Helper()
	info, err := os.Lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// TestLayOut: what releases have comes and goes; what others wrote stays.
func TestLayOut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		one           map[string]string
		written       map[string]string // meanwhile; "" removes
		two           map[string]string
		before, after string // with release 1 and what was written, with release 2
		again         string // with release 1 again, "" for before
		notes         string
	}{
		{
			name: "data stays", one: map[string]string{"conf/a": "1", "gone/x": "x", "gone/deep/y": "y"},
			written: map[string]string{"data/db": "rows", "conf/own": "o"}, two: map[string]string{"conf/a": "2", "new/z": "z"},
			before: "conf/ conf/a=1 conf/own=o data/ data/db=rows gone/ gone/deep/ gone/deep/y=y gone/x=x",
			after:  "conf/ conf/a=2 conf/own=o data/ data/db=rows new/ new/z=z",
		},
		{
			name: "a marker that keeps a directory", one: map[string]string{"data/.gitkeep": ""},
			written: map[string]string{"data/db": "rows"}, two: nil,
			before: "data/ data/.gitkeep= data/db=rows", after: "data/ data/db=rows",
		},
		{
			name: "a data file in the archive by mistake", one: map[string]string{"data/db": "empty"},
			written: map[string]string{"data/db": "rows"}, two: map[string]string{"data/db": "empty"},
			before: "data/ data/db=rows", after: "data/ data/db=rows", notes: "the changed one stays",
		},
		{
			name: "changed by both", one: map[string]string{"conf": "1"},
			written: map[string]string{"conf": "by hand"}, two: map[string]string{"conf": "2"},
			before: "conf=by hand", after: "conf=2", notes: "replaced/p/1-ab/project/conf",
		},
		{
			name: "changed, and gone in the release", one: map[string]string{"conf": "1"},
			written: map[string]string{"conf": "by hand"}, two: nil,
			before: "conf=by hand", after: "conf=by hand", notes: "which release 2 lacks, was changed",
		},
		{
			name: "the release brings what a container wrote", one: nil,
			written: map[string]string{"conf": "by a container"}, two: map[string]string{"conf": "2"},
			before: "conf=by a container", after: "conf=2", again: "conf=by a container", notes: "replaced/p/1-ab/project/conf",
		},
		{
			name: "a file becomes a directory, and a directory a file", one: map[string]string{"a": "1", "b/x": "1", "c/d/e": "1"},
			two:    map[string]string{"a/x": "2", "b": "2", "c": "->b"},
			before: "a=1 b/ b/x=1 c/ c/d/ c/d/e=1", after: "a/ a/x=2 b=2 c->b",
		},
		{
			name: "links", one: map[string]string{"a": "1", "l": "->a", "m": "->a", "n": "1"},
			two:    map[string]string{"a": "1", "l": "->b", "b": "2", "m": "2", "n": "->a"},
			before: "a=1 l->a m->a n=1", after: "a=1 b=2 l->b m=2 n->a",
		},
		{
			name: "the engine made a directory where a file was missing", written: map[string]string{"app.conf/": ""},
			two: map[string]string{"app.conf": "2"}, before: "app.conf/", after: "app.conf=2", again: "",
		},
		{
			name: "a file that was removed comes back", one: map[string]string{"a": "1"}, written: map[string]string{"a": "removed"},
			two: map[string]string{"a": "1"}, before: "", after: "a=1", again: "a=1",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newProject(t)
			p.keep("1", c.one)
			p.keep("2", c.two)
			p.mustLay("1")
			for name, text := range c.written {
				if text == "removed" {
					if err := os.Remove(p.path(name)); err != nil {
						t.Fatal(err)
					}
					delete(c.written, name)
				}
			}
			p.write(c.written)
			p.wants(c.before)
			p.mustLay("2")
			p.wants(c.after)
			if !strings.Contains(strings.Join(p.notes, "\n"), c.notes) || c.notes == "" && len(p.notes) > 0 {
				t.Errorf("notes %q, want %q", p.notes, c.notes)
			}
			p.mustLay("2")
			p.wants(c.after)
			p.mustLay("1")
			switch {
			case c.again != "":
				p.wants(c.again)
			case c.name == "a marker that keeps a directory", c.name == "changed, and gone in the release":
			case strings.HasPrefix(c.name, "the engine made"):
				p.wants("")
			default:
				p.wants(c.before)
			}
		})
	}
}

// TestLayOutKeepsInodes: a container that mounts one file goes on with it while it is
// as it was.
func TestLayOutKeepsInodes(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	p.keep("1", map[string]string{"same": "s", "other": "1", "conf/x": "x"})
	p.keep("2", map[string]string{"same": "s", "other": "2", "conf/x": "x", "conf/y": "y"})
	p.mustLay("1")
	same, other, conf := inode(t, p.path("same")), inode(t, p.path("other")), inode(t, p.path("conf"))
	if os.Geteuid() == 0 { // as the entrypoint of many images does
		if err := errors.Join(os.Chown(p.path("conf"), 999, 999), os.Chown(p.path("conf/x"), 999, 999), os.Chmod(p.path("conf"), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	p.mustLay("2")
	if inode(t, p.path("same")) != same || inode(t, p.path("conf")) != conf {
		t.Error("what did not change was replaced")
	}
	if inode(t, p.path("other")) == other {
		t.Error("a file was written in place")
	}
	if info, err := os.Stat(p.path("conf")); os.Geteuid() == 0 && (err != nil || owner(info) != 999 || info.Mode().Perm() != 0o700) {
		t.Errorf("a directory was taken away from its container: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(p.path("conf/x")); os.Geteuid() == 0 && (err != nil || owner(info) != 999) {
		t.Errorf("a file was taken away from its container: %v", err)
	}
	if found, err := filepath.Glob(p.path("*" + layPrefix + "*")); err != nil || len(found) > 0 {
		t.Error(found, err)
	}
}

// TestLayOutOwners: owners and modes of the release are those of the files.
func TestLayOutOwners(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	p := newProject(t)
	payload := t.TempDir()
	fill(t, payload, map[string]string{"compose.yaml": "", "conf/a": "secret", "l": "->conf/a"})
	if err := errors.Join(
		os.Chown(filepath.Join(payload, "conf/a"), 1000, 1001), os.Chmod(filepath.Join(payload, "conf/a"), 0o440),
		os.Chown(filepath.Join(payload, "conf"), 1002, 1003), os.Chmod(filepath.Join(payload, "conf"), 0o550),
		os.Lchown(filepath.Join(payload, "l"), 1004, 1005),
	); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := p.store.keep(context.Background(), protocol.Release{Version: "1", SHA256: "ab", PayloadDir: payload}, rowEnv{}); err != nil {
		t.Fatal(err)
	}
	p.mustLay("1")
	for name, want := range map[string]string{
		"conf": "dr-xr-x--- 1002 1003", "conf/a": "-r--r----- 1000 1001", "l": "Lrwxrwxrwx 1004 1005", ".": "drwxr-xr-x 0 0",
	} {
		info, err := os.Lstat(p.path(name))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if got := fmt.Sprint(info.Mode(), st.Uid, st.Gid); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	// Nobody else can get there.
	for _, dir := range []string{p.store.dir, filepath.Join(p.store.dir, projectsDir), p.store.path("."), p.store.projectPath("p")} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
}

// TestLayOutRefuses: what is in the way and not the agent's is said, and left alone.
func TestLayOutRefuses(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	for _, c := range []struct {
		name          string
		one, two      map[string]string
		written       map[string]string
		want          string
		insteadOfTree string
	}{
		{
			"a directory with data", nil,
			map[string]string{"data": "2"},
			map[string]string{"data/db": "rows"},
			"release 2 has the file data, but in %P it is a directory in which somebody else wrote project/data/db: move it away", "data/ data/db=rows",
		},
		{
			"data in a directory of the release",
			map[string]string{"d/x": "1"},
			map[string]string{"d": "2"},
			map[string]string{"d/deep/db": "rows"},
			"a directory in which somebody else wrote project/d/deep", "d/ d/deep/ d/deep/db=rows d/x=1",
		},
		{
			"a file", nil,
			map[string]string{"data/x": "2"},
			map[string]string{"data": "rows"},
			"release 2 has the dir data, but in %P it is a file that no release laid there: move it away", "data=rows",
		},
		{
			"a link", nil,
			map[string]string{"data/x": "2"},
			map[string]string{"data": "->" + outside},
			"a symbolic link to " + outside + " that no release laid there", "data->" + outside,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newProject(t)
			p.keep("1", c.one)
			p.keep("2", c.two)
			p.mustLay("1")
			p.write(c.written)
			err := p.lay("2")
			if want := strings.ReplaceAll(c.want, "%P", p.store.projectPath("p")); err == nil || !strings.HasPrefix(err.Error(), "check: ") || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
			p.wants(c.insteadOfTree)
			if tree(t, outside) != "" {
				t.Error("a link was followed")
			}
		})
	}
}

// TestLayOutFollowsNoLink: a container that puts a link in the place of what a release
// has there does not have the agent write elsewhere.
func TestLayOutFollowsNoLink(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	fill(t, outside, map[string]string{"x": "of the host", "conf/x": "of the host"})
	p := newProject(t)
	p.keep("1", map[string]string{"conf/x": "1", "file": "1", "gone/x": "1"})
	p.keep("2", map[string]string{"conf/x": "2", "file": "2"})
	p.mustLay("1")
	if err := errors.Join(
		os.RemoveAll(p.path("gone")), os.Symlink(outside, p.path("gone")),
		os.Remove(p.path("file")), os.Symlink(filepath.Join(outside, "x"), p.path("file")),
	); err != nil {
		t.Fatal(err)
	}
	p.mustLay("2")
	p.wants("conf/ conf/x=2 file=2 gone->" + outside)
	if err := errors.Join(os.RemoveAll(p.path("conf")), os.Symlink(outside, p.path("conf"))); err != nil {
		t.Fatal(err)
	}
	if err := p.lay("1"); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Error(err)
	}
	if got := tree(t, outside); got != "conf/ conf/x=of the host x=of the host" {
		t.Errorf("outside: %s", got)
	}
	// Nor does it have the engine mount something else.
	lay := p.laying("2")
	defer lay.close()
	mount := func(source string) error {
		return lay.checkSources(&types.Project{Services: types.Services{"web": {Volumes: []types.ServiceVolumeConfig{
			{Type: types.VolumeTypeBind, Source: p.path(source), Target: "/x"},
		}}}})
	}
	if err := mount("gone/conf"); err == nil || !strings.Contains(err.Error(), `service "web" mounts `+p.path("gone")+", which is a symbolic link to "+outside) {
		t.Error(err)
	}
	if err := os.Symlink("file", p.path("inside")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(mount("inside"), mount("file"), mount("nothing/yet")); err != nil {
		t.Error(err)
	}
}

// TestLayOutNothing: what the agent laid out goes, as after a first installation that
// failed.
func TestLayOutNothing(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	p.keep("1", map[string]string{"conf/x": "1", "data/.keep": ""})
	p.mustLay("1")
	p.write(map[string]string{"data/db": "rows"})
	p.mustLay("")
	p.wants("data/ data/db=rows")
}
