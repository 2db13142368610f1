package operator

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/fetcher/unpack"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

var (
	onCompose = platform.Of(task.DeploymentDocker)
	onHelm    = platform.Of(task.DeploymentKubernetes)
)

// tree writes files, name to content; a name that ends with / is a directory, a
// content that begins with -> a symbolic link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		full := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(full), 0o755)
		target, isLink := strings.CutPrefix(content, "->")
		switch {
		case err != nil:
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(full, 0o755)
		case isLink:
			err = os.Symlink(target, full)
		default:
			err = os.WriteFile(full, []byte(content), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// entries lists an archive, without directories.
func entries(t *testing.T, a *Archive) []string {
	t.Helper()
	gz, err := gzip.NewReader(a)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(gz); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeDir {
			names = append(names, h.Name)
		}
	}
}

func TestOpenArchivePacks(t *testing.T) {
	t.Parallel()
	const plain = "services:\n  app:\n    image: app\n"
	for name, tt := range map[string]struct {
		platform platform.Platform
		files    map[string]string
		path     string // below the tree
		want     string
		note     string
	}{
		"a directory": {
			onCompose,
			map[string]string{"compose.yaml": plain, "conf/a": "", ".env": "A=b", "l": "->conf/a", ".hidden": ""},
			"",
			".env .hidden compose.yaml conf/a l", "",
		},
		"without .git": {
			onCompose,
			map[string]string{"compose.yaml": plain, ".git/config": "", "sub/.git": "gitdir: x", ".gitignore": ""},
			"",
			".gitignore compose.yaml", ".git was left out",
		},
		"through a link": {
			onCompose, map[string]string{"v1/compose.yaml": plain, "current": "->v1"}, "current", "compose.yaml", "",
		},
		"without what .dockerignore names": {
			onCompose, map[string]string{
				".dockerignore": "node_modules\n*.log\n**/tmp\n", "compose.yaml": plain,
				"node_modules/x/y.js": "", "a.log": "", "web/tmp/x": "", "web/index.html": "", "web/a.log": "",
			}, "", ".dockerignore compose.yaml web/a.log web/index.html", "what .dockerignore names was left out (3)",
		},
		"as Docker matches": {
			onCompose, map[string]string{
				".dockerignore": "\ufeff# comment\n/top\n  docs/*.md  \n!docs/keep.md\n**/cache\na/**/z\n?.tmp\nonly/\n.\n", "compose.yaml": plain,
				"top/x": "", "sub/top": "", "docs/a.md": "", "docs/keep.md": "", "docs/x/b.md": "", "x/y/cache/f": "", "cache": "",
				"a/z": "", "a/b/c/z/f": "", "a/b/zz": "", "x.tmp": "", "xx.tmp": "", "only": "",
			}, "", ".dockerignore a/b/zz compose.yaml docs/keep.md docs/x/b.md sub/top xx.tmp", "was left out",
		},
		"with exceptions": {
			onCompose,
			map[string]string{".dockerignore": "*\n!web\n", "docker-compose.yml": plain, "web/index.html": "", "secret": ""},
			"",
			".dockerignore docker-compose.yml web/index.html", "left out (1)",
		},
		"with what the Compose file names": {
			onCompose,
			map[string]string{
				".dockerignore": "**\n",
				"compose.yaml": "include: [more/web.yml]\nservices:\n  app:\n    image: app\n    build: .\n    env_file: [app.env, \"${E:-more.env}\"]\n" +
					"    volumes:\n      - ./conf:/etc/app:ro\n      - type: bind\n        source: data\n# ./comment\n  two:\n    build: ./two\n" +
					"secrets:\n  s:\n    file: ./secrets/s.txt\n",
				"compose.override.yaml": plain, "more/web.yml": "services:\n  web:\n    volumes: ['./site:/srv', /var/run:/run]\n",
				"app.env": "", "more.env": "", ".env": "", "conf/a/b": "", "data/d": "", "more/site/index.html": "", "secrets/s.txt": "", "secrets/other": "",
				"Dockerfile": "", "two/Dockerfile": "", "two/main.go": "", "src/main.go": "", "comment": "", "README": "",
			},
			"", ".dockerignore .env Dockerfile app.env compose.override.yaml compose.yaml conf/a/b data/d more.env more/site/index.html more/web.yml secrets/s.txt two/Dockerfile two/main.go",
			"what .dockerignore names was left out",
		},
		"all of it when all is mounted": {
			onCompose,
			map[string]string{".dockerignore": "src", "compose.yaml": "services: {app: {image: app, volumes: ['.:/app']}}", "src/x": ""},
			"",
			".dockerignore compose.yaml src/x", "",
		},
		"a Compose file two levels down": {
			onCompose,
			map[string]string{".dockerignore": "*.yml\nconf\n", "srv/app/docker-compose.yml": plain + "    volumes: ['../conf:/c']\n", "srv/conf/a": ""},
			"",
			".dockerignore srv/app/docker-compose.yml srv/conf/a", "",
		},
		"one file": {
			onCompose, map[string]string{"compose.yml": plain}, "compose.yml", "compose.yml", "",
		},
		"one file of another name": {
			onCompose, map[string]string{"docker-compose.prod.yml": plain}, "docker-compose.prod.yml", "compose.yaml", "docker-compose.prod.yml is stored as compose.yaml",
		},
		"one file without an extension": {
			onCompose, map[string]string{"stack": "# ours\n" + plain}, "stack", "compose.yaml", "stack is stored as compose.yaml",
		},
		"one file that names others": {
			onCompose, map[string]string{"compose.yaml": plain + "    volumes: ['./conf:/c']\n", "conf/a": ""}, "compose.yaml", "compose.yaml", "names conf, which a single file does not bring along",
		},
		"a chart without what .helmignore names": {
			onHelm,
			map[string]string{
				"chart/Chart.yaml": "name: a", "chart/.helmignore": "*.md\n/docs\nci/\nfiles/*.bak\n#x\n", "chart/README.md": "", "chart/docs/x": "",
				"chart/templates/docs": "", "chart/ci/v.yaml": "", "chart/files/a.bak": "", "chart/files/b/a.bak": "", "chart/charts/c/Chart.yaml": "",
				"chart/charts/c/.helmignore": "Chart.yaml", "README.md": "", ".dockerignore": "chart",
			},
			"", ".dockerignore README.md chart/.helmignore chart/Chart.yaml chart/charts/c/.helmignore chart/charts/c/Chart.yaml chart/files/b/a.bak chart/templates/docs",
			"what .helmignore names was left out (4)",
		},
		"a chart whose .helmignore is Helm's to read": {
			onHelm, map[string]string{"Chart.yaml": "name: a", ".helmignore": "*.md\n!README.md\n", "a.md": ""}, "", ".helmignore Chart.yaml a.md", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := OpenArchive(t.Context(), filepath.Join(tree(t, tt.files), tt.path), tt.platform)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if got := strings.Join(entries(t, a), " "); got != tt.want {
				t.Errorf("packed\n%s, want\n%s", got, tt.want)
			}
			if notes := strings.Join(a.Notes, "; "); (notes == "") != (tt.note == "") || !strings.Contains(notes, tt.note) {
				t.Errorf("notes are %q, want %q", notes, tt.note)
			}
		})
	}
}

func TestOpenArchiveRefuses(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"values.yaml": "a: b", "pipe/x": ""})
	for _, tt := range []struct {
		platform platform.Platform
		path     string
		want     string
	}{
		{onHelm, "values.yaml", "a Helm release is a directory with Chart.yaml, or a tar.gz"},
		{onCompose, "gone", "no such file"},
		{onCompose, "/dev/null", "neither a file nor a directory"},
	} {
		path := tt.path
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if _, err := OpenArchive(t.Context(), path, tt.platform); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.path, err)
		}
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if _, err := OpenArchive(stopped, dir, onCompose); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestReleaseCheckLooksIntoTheArchive checks archives alone: what wrktalk-deploy says
// about their content, cmd/wrktalk-deploy tests.
func TestReleaseCheckLooksIntoTheArchive(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	check := ReleaseCheck{Limits: unpack.Limits{Bytes: 1000, Entries: 10, Depth: 5, Ratio: 100}}
	for name, tt := range map[string]struct {
		files map[string]string
		path  string
		want  string
	}{
		"good":         {map[string]string{"compose.yaml": "services: {}"}, "", ""},
		"empty":        {map[string]string{"d/": ""}, "d", "the agent would refuse it: artifact holds no entries"},
		"outside":      {map[string]string{"l": "->/etc/passwd"}, "", `entry "l" is a symbolic link to "/etc/passwd", which is absolute`},
		"garbage":      {map[string]string{"f": "\x00\x01"}, "f", "is not a gzip'd tar archive"},
		"too large":    {map[string]string{"f": strings.Repeat("x", 1001)}, "", "is too large"},
		"Git LFS":      {map[string]string{"r.tgz": "version https://git-lfs.github.com/spec/v1\n"}, "r.tgz", "Git LFS pointer"},
		"an HTML page": {map[string]string{"r.tgz": "<!doctype html>"}, "r.tgz", "an HTML page"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := OpenArchive(t.Context(), filepath.Join(tree(t, tt.files), tt.path), onCompose)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			err = check.Run(t.Context(), a)
			var refused *RefusedError
			if errors.As(err, &refused) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v", err)
			}
			if at, _ := a.Seek(0, io.SeekCurrent); err == nil && at != 0 {
				t.Errorf("the archive is at %d", at)
			}
		})
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestNearestVersion(t *testing.T) {
	t.Parallel()
	known := []string{"2.5.0", "2.4.9", "v2.4.0", "1.0.0", "nightly"}
	for version, want := range map[string]string{"2.5.1": "2.5.0", "v2.5.0": "2.5.0", "2.4.0": "v2.4.0", "2,5.0": "2.5.0", "nightyl": "nightly", "10.20.30": "", "x": ""} {
		if got := nearest(version, known); got != want {
			t.Errorf("%s: %q, want %q", version, got, want)
		}
	}
	for version, ok := range map[string]bool{
		"2.5.0": true, "v2.5.0-rc.1+build~7": true, "2024.11": true, "größe": true,
		"": false, "../../etc": false, "-wait": false, "a b": false, "a/b": false, "a\u200bb": false, ".5": false, strings.Repeat("1", 101): false,
	} {
		if err := CheckVersion(version); (err == nil) != ok {
			t.Errorf("%q: %v", version, err)
		}
	}
}
