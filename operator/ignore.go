package operator

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
)

// ignored tells what of a release's directory is not packed: paths are relative to
// it, with slashes. covers reports whether dir with all that is in it is left out.
type ignored interface {
	file(rel string, isDir bool) bool
	covers(dir string) bool
}

// readIgnored returns what the directory's own files say is to be left out, for the
// platform p. Of those of Git, .git is, which the caller knows.
func readIgnored(dir string, p platform.Platform) (ignored, error) {
	if p.SingleFile {
		return readDockerIgnore(dir, p.IgnoreFile)
	}
	return &helmIgnore{root: dir, ignoreFile: p.IgnoreFile, mainFiles: p.MainFiles(), charts: map[string][]helmRule{}}, nil
}

// dockerIgnore is .dockerignore. It is written for build contexts, and a release
// needs more than a build: what its Compose files name stays.
type dockerIgnore struct {
	patterns   []dockerPattern // in order: the last one that matches counts
	exceptions bool            // one of them is one
	named      named
}

// dockerPattern matches a path or a directory above it, component by component, where
// ** stands for any number of them.
type dockerPattern struct {
	parts     []string
	exception bool
}

// readDockerIgnore reads the file as Docker does (moby/patternmatcher, which wrktalk-agent
// does not link: it goes without what belongs to a deployment).
func readDockerIgnore(dir, name string) (ignored, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return dockerIgnore{}, nil
	}
	if err != nil {
		return nil, err
	}
	d := dockerIgnore{named: named{dir: dir, files: map[string]bool{}, dirs: map[string]bool{}}}
	for line := range strings.Lines(strings.TrimPrefix(string(data), "\ufeff")) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		text, exception := strings.CutPrefix(strings.TrimSpace(line), "!")
		text = strings.TrimPrefix(path.Clean(strings.TrimSpace(text)), "/")
		if text == "" || text == "." {
			continue
		}
		p := dockerPattern{strings.Split(text, "/"), exception}
		for _, part := range p.parts {
			if _, err := path.Match(part, ""); err != nil {
				return nil, fmt.Errorf("read %s: %q is no pattern", name, text)
			}
		}
		d.patterns = append(d.patterns, p)
		d.exceptions = d.exceptions || exception
	}
	if len(d.patterns) > 0 {
		d.named.addComposeFiles()
	}
	return d, nil
}

func (d dockerIgnore) file(rel string, isDir bool) bool {
	out, parts := false, strings.Split(rel, "/")
	for _, p := range d.patterns {
		for n := 1; n <= len(parts) && out == p.exception; n++ {
			if matchParts(p.parts, parts[:n]) {
				out = !p.exception
			}
		}
	}
	return out && !d.named.keeps(rel) && !(isDir && d.named.below(rel))
}

func (d dockerIgnore) covers(dir string) bool { return d.file(dir, true) && !d.exceptions }

func matchParts(pattern, name []string) bool {
	for ; len(pattern) > 0; pattern, name = pattern[1:], name[1:] {
		if pattern[0] == "**" {
			for n := range len(name) + 1 {
				if matchParts(pattern[1:], name[n:]) {
					return true
				}
			}
			return false
		}
		if len(name) == 0 {
			return false
		}
		if ok, _ := path.Match(pattern[0], name[0]); !ok { // it fails for no pattern that was read
			return false
		}
	}
	return len(name) == 0
}

// named is what the Compose files of a directory name, and what belongs to a build:
// files, and directories with all that is in them.
type named struct {
	dir   string
	files map[string]bool
	dirs  map[string]bool
}

func (n named) keeps(rel string) bool {
	base := path.Base(rel)
	if n.files[rel] || base == ".dockerignore" || strings.Contains(base, "Dockerfile") || strings.Contains(base, "Containerfile") {
		return true
	}
	for at := rel; ; at = path.Dir(at) {
		if n.dirs[at] {
			return true
		}
		if at == "." {
			return false
		}
	}
}

// below reports whether something that is kept lies below rel.
func (n named) below(rel string) bool {
	for _, kept := range []map[string]bool{n.files, n.dirs} {
		for name := range kept {
			if strings.HasPrefix(name, rel+"/") {
				return true
			}
		}
	}
	return false
}

// maxScanned bounds the Compose files that are looked at, and each in bytes.
const (
	maxScanned     = 64
	maxScannedSize = 4 << 20
)

// addComposeFiles adds the Compose files down to the second level, and what they and
// those that they draw in name. They are not parsed: whatever in them could be the
// path of a file that is there is taken for one, so that rather too much is packed
// than too little.
func (n named) addComposeFiles() {
	var queue []string
	for _, level := range []string{"", "*/", "*/*/"} {
		for _, name := range []string{"compose*.y*ml", "docker-compose*.y*ml"} {
			found, _ := fs.Glob(os.DirFS(n.dir), level+name) // it fails for malformed patterns only
			queue = append(queue, found...)
		}
	}
	seen := map[string]bool{}
	for len(queue) > 0 && len(seen) < maxScanned {
		file := queue[0]
		queue = queue[1:]
		if seen[file] {
			continue
		}
		seen[file] = true
		n.add(file)
		n.files[path.Join(path.Dir(file), ".env")] = true
		for _, rel := range n.scan(file) {
			if ext := path.Ext(rel); ext == ".yaml" || ext == ".yml" {
				queue = append(queue, rel)
			}
		}
	}
}

var (
	pathLike    = regexp.MustCompile(`[^\s,{}\[\]"'=:]+`)
	ofBuild     = regexp.MustCompile(`(^|[\s{,-])(build|context)\s*:`)
	ofDirectory = regexp.MustCompile(`(^|[\s{,-])(build|context|source|project_directory)\s*:`)
)

// scan adds what the file names, and returns the files among that.
func (n named) scan(file string) (files []string) {
	f, err := os.Open(filepath.Join(n.dir, file))
	if err != nil {
		return nil // packing it says so
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxScannedSize))
	lines.Buffer(nil, maxScannedSize)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, token := range pathLike.FindAllString(line, -1) {
			token = strings.TrimLeft(token, "-+?") // of ${NAME:-./conf}
			rel := path.Join(path.Dir(file), token)
			if token == "" || path.IsAbs(token) || !filepath.IsLocal(rel) || rel == "." && ofBuild.MatchString(line) {
				continue
			}
			info, err := os.Stat(filepath.Join(n.dir, rel))
			switch {
			case err != nil:
			case !info.IsDir():
				n.add(rel)
				files = append(files, rel)
			case strings.HasPrefix(token, ".") || ofDirectory.MatchString(line):
				n.add(rel)
			}
		}
	}
	return files
}

// add adds a path that is there and, of a symbolic link, what it leads to.
func (n named) add(rel string) {
	kind := n.files
	if info, err := os.Stat(filepath.Join(n.dir, rel)); err == nil && info.IsDir() {
		kind = n.dirs
	}
	kind[rel] = true
	if real, err := filepath.EvalSymlinks(filepath.Join(n.dir, rel)); err == nil {
		if to, err := filepath.Rel(n.dir, real); err == nil && filepath.IsLocal(to) {
			kind[filepath.ToSlash(to)] = true
		}
	}
}

// helmIgnore is the .helmignore of each chart that is in no other one: what Helm
// would not read is not packed.
type helmIgnore struct {
	root       string
	ignoreFile string
	mainFiles  []string
	charts     map[string][]helmRule // by directory; nil for one that is none
}

type helmRule struct {
	pattern  string
	dirOnly  bool
	fullPath bool // else the base name is compared
}

func (h *helmIgnore) file(rel string, isDir bool) bool {
	chart, ok := h.chartOf(rel)
	if !ok || path.Base(rel) == h.ignoreFile {
		return false
	}
	for _, r := range h.charts[chart] {
		name := path.Base(rel)
		if r.fullPath {
			name = rel
			if chart != "." {
				name = strings.TrimPrefix(rel, chart+"/")
			}
		}
		if ok, err := path.Match(r.pattern, name); ok && err == nil && (isDir || !r.dirOnly) {
			return true
		}
	}
	return false
}

func (h *helmIgnore) covers(dir string) bool { return h.file(dir, true) }

// chartOf returns the directory of the outermost chart that holds rel.
func (h *helmIgnore) chartOf(rel string) (string, bool) {
	parts := strings.Split(rel, "/")
	for i := range parts {
		dir := path.Join(".", path.Join(parts[:i]...))
		if dir == "" {
			dir = "."
		}
		if _, ok := h.charts[dir]; !ok {
			h.charts[dir] = h.read(dir)
		}
		if h.charts[dir] != nil {
			return dir, true
		}
	}
	return "", false
}

// read returns the rules of the chart at dir, nil when there is none. Of a file that
// uses ! or **, nothing is left out here: Helm reads it in a way of its own.
func (h *helmIgnore) read(dir string) []helmRule {
	isChart := false
	for _, name := range h.mainFiles {
		_, err := os.Stat(filepath.Join(h.root, dir, name))
		isChart = isChart || err == nil
	}
	if !isChart {
		return nil
	}
	rules := []helmRule{}
	data, err := os.ReadFile(filepath.Join(h.root, dir, h.ignoreFile))
	if err != nil {
		return rules
	}
	for line := range strings.Lines(string(data)) {
		rule := strings.TrimSpace(line)
		switch {
		case rule == "" || strings.HasPrefix(rule, "#"):
			continue
		case strings.HasPrefix(rule, "!") || strings.Contains(rule, "**"):
			return []helmRule{}
		}
		pattern, dirOnly := strings.CutSuffix(rule, "/")
		full := strings.Contains(pattern, "/")
		rules = append(rules, helmRule{strings.TrimPrefix(pattern, "/"), dirOnly, full})
	}
	return rules
}
