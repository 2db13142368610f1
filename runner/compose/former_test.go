package compose

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// formerRelease makes in the working directory dir what the first version made of a
// release, and returns the directory that containers mounted from.
func formerRelease(t *testing.T, dir, bundle string, files map[string]string) string {
	t.Helper()
	at := filepath.Join(dir, "releases", bundle)
	fill(t, at, files)
	digests := map[string]string{}
	for name, text := range files {
		sum := sha256.Sum256([]byte(text))
		digests[name] = hex.EncodeToString(sum[:])
	}
	data, err := json.Marshal(digests)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, dir, map[string]string{".lock": "", "releases/.kept-" + bundle: string(data)})
	_ = os.Remove(filepath.Join(dir, "current"))
	fill(t, dir, map[string]string{"current": "->releases/" + bundle})
	for _, d := range []string{dir, filepath.Join(dir, "releases")} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

// formerProject is a project in the former layout, without an engine.
type formerProject struct {
	*project
	list []container.Summary
	used map[string]bool
}

// newFormer returns one whose Compose file is in the directory sub of its bundle. Two
// older releases are there as well, one of which a container still mounts from.
func newFormer(t *testing.T, sub string) *formerProject {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "work")
	formerRelease(t, dir, "0-000000000000", map[string]string{"compose.yaml": "# 0", "data/db": "old"})
	formerRelease(t, dir, "0-111111111111", map[string]string{"compose.yaml": "# 0"})
	at := formerRelease(t, dir, "1-abababababab", map[string]string{
		filepath.Join(sub, "compose.yaml"): "# 1", filepath.Join(sub, "conf/a"): "1", filepath.Join(sub, "gone"): "1", filepath.Join(sub, "edited"): "1",
	})
	at = filepath.Join(at, sub)
	fill(t, at, map[string]string{"data/db": "rows", "conf/own": "o", "edited": "by hand"})
	fill(t, dir, map[string]string{"releases/shared/db": "rows of ../shared"})
	list := []container.Summary{{
		Labels: map[string]string{api.WorkingDirLabel: at},
		Mounts: []container.MountPoint{{Source: filepath.Join(at, "data")}, {Source: filepath.Join(dir, "releases/shared")}, {Source: "/etc"}},
	}, {
		Labels: map[string]string{api.WorkingDirLabel: filepath.Join(dir, "releases/0-000000000000")},
		Mounts: []container.MountPoint{{Source: filepath.Join(dir, "releases/0-000000000000/secret")}},
	}}
	if sub != "." {
		fill(t, dir, map[string]string{"releases/1-abababababab/upper/db": "rows of ../upper"})
	}
	p := &formerProject{&project{t: t, store: open(t, dir)}, list, map[string]bool{"1-abababababab": true, "0-000000000000": true}}
	p.keep("2", map[string]string{"conf/a": "2", "edited": "1"})
	return p
}

// adopt has the project go over, as a deployment does.
func (p *formerProject) adopt() error {
	f, err := p.store.findFormer("p", p.list, p.used)
	if err != nil || f == nil {
		return err
	}
	if err := p.store.keepFormer(context.Background(), f, nil, rowEnv{}); err != nil {
		return err
	}
	return p.store.adopt("p", f, p.list)
}

// wantsAdopted checks what is there after release 2 was laid out.
func (p *formerProject) wantsAdopted() {
	p.t.Helper()
	p.wants("conf/ conf/a=2 conf/own=o data/ data/db=rows edited=by hand")
	top := p.store.projectPath("p")
	if got := tree(p.t, filepath.Join(top, "shared")); got != "db=rows of ../shared" {
		p.t.Errorf("beside it: %s", got)
	}
	if got := tree(p.t, filepath.Join(top, besideDir)); got != "" && got != "upper/ upper/db=rows of ../upper" {
		p.t.Errorf("beside it: %s", got)
	}
}

// TestFormerLayoutGoesOver: what the containers of the first version wrote is there
// with the next release, with the one after a rollback, and by the old path as long
// as a container may look for it there.
func TestFormerLayoutGoesOver(t *testing.T) {
	t.Parallel()
	for _, sub := range []string{".", "app"} {
		t.Run(sub, func(t *testing.T) {
			t.Parallel()
			p := newFormer(t, sub)
			old := filepath.Join(p.store.dir, "releases/1-abababababab", sub)
			data := inode(t, filepath.Join(old, "data/db"))
			if err := p.adopt(); err != nil {
				t.Fatal(err)
			}
			p.mustLay("2")
			p.wantsAdopted()
			if inode(t, p.path("data/db")) != data || inode(t, filepath.Join(old, "data")+"/db") != data {
				t.Error("the data was copied, or is not found by its old path")
			}
			if text, err := os.ReadFile(filepath.Join(p.store.dir, "releases/shared/db")); string(text) != "rows of ../shared" {
				t.Errorf("%q, %v", text, err)
			}
			if got := tree(t, p.store.path("1-abababababab")); !strings.HasSuffix(got, "gone=1") || strings.Contains(got, "rows") {
				t.Errorf("release 1 is kept as %s", got)
			}
			if f, err := p.store.findFormer("p", p.list, p.used); f != nil || err != nil {
				t.Errorf("it would go over again: %v, %v", f, err)
			}
			lay, err := p.store.layOut("p", "1-abababababab", "1", layout{sub}, func(string, ...any) {})
			if err != nil {
				t.Fatal(err)
			}
			defer lay.close()
			if err := lay.run(); err != nil {
				t.Fatal(err)
			}
			p.wants("conf/ conf/a=1 conf/own=o data/ data/db=rows edited=by hand gone=1")
		})
	}
}

// TestFormerOf: the directory that goes over is the one that serves this project.
func TestFormerOf(t *testing.T) {
	t.Parallel()
	p := newFormer(t, ".")
	find := func(list []container.Summary, used ...string) string {
		t.Helper()
		all := map[string]bool{}
		for _, u := range used {
			all[u] = true
		}
		f, err := p.store.findFormer("p", list, all)
		if err != nil {
			t.Fatal(err)
		}
		if f == nil {
			return ""
		}
		return f.bundle
	}
	const one, zero = "1-abababababab", "0-000000000000"
	for got, want := range map[string]string{
		find(p.list, one, zero):     one,
		find(p.list[1:], one, zero): zero, // the link is another project's
		find(nil):                   one,  // its containers were removed
		"other " + find(nil, one):   "other ",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestFormerDeploymentGoesOver does so with containers of the first version, whose
// next release fails first.
func TestFormerDeploymentGoesOver(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	const mounts = "    volumes: ['./data:/data', './motd:/motd:ro']\n"
	files := map[string]string{"compose.yaml": b.web("1.0", mounts), "motd": "one"}
	one := b.release("1.0", files, "")
	two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", mounts), "motd": "two"}, "")
	bad := b.release("3.0", map[string]string{"compose.yaml": b.web("3.0", mounts+"    command: [crash]\n"), "motd": "three"}, "")

	// What the first version did.
	dir := formerRelease(t, b.workdir, one.Bundle(), files)
	ctx := context.Background()
	e, err := connect(ctx, io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	p, _, err := load(ctx, dir, b.project, rowEnv{}, anyFile)
	if err != nil {
		t.Fatal(err)
	}
	label(p, b.job(one, nil), *one, true)
	if err := e.compose.Up(ctx, p, api.UpOptions{Create: api.CreateOptions{Services: p.ServiceNames()}, Start: api.StartOptions{Project: p, Services: p.ServiceNames()}}); err != nil {
		t.Fatal(err)
	}
	fill(t, dir, map[string]string{"data/db": "rows"})

	reads := func(version, motd string) {
		t.Helper()
		if got := b.ask("web", "/") + " " + b.ask("web", "/file?path=/motd") + " " + b.ask("web", "/file?path=/data/db"); got != version+" "+motd+" rows" {
			t.Errorf("web serves %q", got)
		}
	}
	// A process that dies as soon as the directory went over; then the engine restarts.
	s := open(t, b.workdir)
	list, err := e.list(ctx, b.project)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.findFormer(b.project, list, nil)
	if err != nil || f == nil {
		t.Fatal(f, err)
	}
	if err := s.keepFormer(ctx, f, nil, rowEnv{}); err != nil {
		t.Fatal(err)
	}
	if err := s.adopt(b.project, f, list); err != nil {
		t.Fatal(err)
	}
	s.close()
	testenv.DockerOutput(t, "restart", "--time", "1", b.container("web"))
	b.await("web")
	reads("1.0", "one")

	job := b.job(bad, kept(one))
	if res := b.run(job); !res.Restored {
		t.Fatalf("%+v", res)
	}
	reads("1.0", "one")
	b.up(two, kept(one))
	reads("2.0", "two")
	if _, err := os.Lstat(dir); err == nil {
		t.Error("the link to the project directory stays, although nothing needs it")
	}
	b.up(kept(one), kept(two))
	reads("1.0", "one")
	if got, _ := os.Readlink(filepath.Join(b.workdir, "current")); got != protocol.BundlesDir+"/"+one.Bundle() {
		t.Errorf("current is %q", got)
	}
}
