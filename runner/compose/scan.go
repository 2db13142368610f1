package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"go.yaml.in/yaml/v3"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

const (
	maxComposeFile  = 4 << 20 // bytes of one file
	maxComposeFiles = 64      // files that include or extend each other
	maxIncludes     = 1000    // how often files are included: the loader reads one again each time
	// maxNodes bounds the YAML nodes of a release once its aliases are
	// expanded. The loader walks through aliases itself, without the YAML
	// library's own guard against bombs.
	maxNodes = 100_000
)

// hostFile says why a release may not be given a file of the host that lies
// outside of it, an absolute path; "" when it may.
type hostFile func(path string) string

// scan reads a bundle's Compose files before the loader does, and refuses what
// the loader would follow to anywhere: files outside of the bundle that the policy
// refuses, remote resources, alias bombs, files without end.
type scan struct {
	root     *os.Root // the bundle
	dir      string   // its real path
	hostFile hostFile
	sources  sources // what locate found
	bounds   deploy.YAMLBounds
	included int
	stack    []string // files that are being included, the outermost first
	extended map[string]bool
	docs     map[string][]*yaml.Node // what was parsed, by path
	order    []string                // the paths in docs, as they were met
	read     map[string]bool         // what the loader reads of the bundle, there or not, relative to dir

	following int // services that find follows through extends
}

// scanBundle checks the Compose files of the bundle at dir, and every file they draw
// in. It returns what locate does, and all that the loader reads of the bundle, there
// or not; paths are relative to dir.
func scanBundle(dir string, row rowEnv, hostFile hostFile) (src sources, read map[string]bool, err error) {
	s, err := scanFiles(dir, row, hostFile)
	if s == nil {
		return src, nil, err
	}
	defer s.root.Close()
	return s.sources, s.read, err
}

// scanFiles is scanBundle, and returns the scan, for what else it can tell. The caller
// closes its root.
func scanFiles(dir string, row rowEnv, hostFile hostFile) (*scan, error) {
	s, err := newScan(dir, hostFile)
	if err != nil {
		return nil, err
	}
	if s.sources, err = locate(s.root, row); err != nil {
		return s, err
	}
	for _, file := range s.sources.files {
		if err := s.file(filepath.Join(dir, file), filepath.Join(dir, s.sources.projectDir), true); err != nil {
			return s, err
		}
	}
	return s, nil
}

// newScan returns a scan of the bundle at dir. The caller closes its root.
func newScan(dir string, hostFile hostFile) (*scan, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the bundle: %w", err)
	}
	return &scan{
		root: root, dir: dir, hostFile: hostFile,
		bounds: deploy.YAMLBounds{Values: maxNodes}, extended: map[string]bool{}, docs: map[string][]*yaml.Node{}, read: map[string]bool{},
	}, nil
}

// lookup returns a variable, as the loader will see it.
func (s *scan) lookup(name string) (string, bool) {
	value, ok := s.sources.env.values[name]
	if !ok && name == "PWD" {
		return filepath.Join(s.dir, s.sources.base), true
	}
	return value, ok
}

// reads notes that the loader reads path, an absolute one. Files outside of the
// bundle are not the release's to keep.
func (s *scan) reads(path string) {
	if rel, err := filepath.Rel(s.dir, path); err == nil && filepath.IsLocal(rel) {
		s.read[rel] = true
	}
}

// file checks one Compose file. Relative paths in it start at base. What an
// extended file includes is not followed by the loader, so neither here.
func (s *scan) file(path, base string, includes bool) error {
	if includes {
		if slices.Contains(s.stack, path) {
			return nil // the loader says that it is a circle
		}
		if s.included++; s.included > maxIncludes {
			return fmt.Errorf("the Compose files include each other more than %d times", maxIncludes)
		}
		s.stack = append(s.stack, path)
		defer func() { s.stack = s.stack[:len(s.stack)-1] }()
	} else {
		if s.extended[path] {
			return nil
		}
		s.extended[path] = true
	}
	s.reads(path)
	docs, err := s.parse(path)
	if err != nil {
		return err
	}
	for _, doc := range docs {
		top, ok := plain(doc).(map[string]any)
		if !ok {
			continue // the loader says what is wrong with it
		}
		if includes {
			if err := s.includes(top["include"], base); err != nil {
				return err
			}
		}
		services, _ := top["services"].(map[string]any)
		for name, v := range services {
			service, ok := v.(map[string]any)
			if !ok {
				continue
			}
			if err := s.service(name, service, base); err != nil {
				return err
			}
		}
		for _, kind := range []string{"configs", "secrets"} {
			objects, _ := top[kind].(map[string]any)
			for name, v := range objects {
				object, _ := v.(map[string]any)
				file, _ := object["file"].(string)
				if file == "" || filepath.IsAbs(file) {
					continue // for those of the host, see policy.go
				}
				if _, err := s.allowed(file, base); err != nil {
					return s.refused(err, file, kind, name, "file")
				}
			}
		}
	}
	return nil
}

func (s *scan) service(name string, service map[string]any, base string) error {
	if extends, ok := service["extends"].(map[string]any); ok {
		if file, ok := extends["file"].(string); ok && file != "" {
			path, err := s.allowed(file, base)
			if err != nil {
				return s.refused(err, file, "services", name, "extends")
			}
			if err := s.file(path, filepath.Dir(path), false); err != nil {
				return err
			}
		}
	}
	for _, file := range stringList(service["label_file"]) {
		path, err := s.allowed(file, base)
		if err == nil {
			err = s.readable(path)
		}
		if err != nil {
			return s.refused(err, file, "services", name, "label_file")
		}
		s.reads(path)
	}
	for _, file := range stringList(service["env_file"]) {
		path, err := s.allowed(file, base)
		if err != nil {
			return s.refused(err, file, "services", name, "env_file")
		}
		s.reads(path)
	}
	return nil
}

func (s *scan) includes(v any, base string) error {
	list, _ := v.([]any)
	for _, entry := range list {
		var paths []string
		var projectDir string
		switch e := entry.(type) {
		case string:
			paths = []string{e}
		case map[string]any:
			paths = stringList(e["path"])
			projectDir, _ = e["project_directory"].(string)
			for _, f := range stringList(e["env_file"]) {
				path, err := s.allowed(f, base)
				if err == nil {
					err = s.readable(path)
				}
				if err != nil {
					return s.refused(err, f, "include")
				}
				s.reads(path)
			}
		}
		next := ""
		for i, p := range paths {
			path, err := s.allowed(p, base)
			if err != nil {
				return s.refused(err, p, "include")
			}
			if i == 0 {
				next = filepath.Dir(path)
				if projectDir != "" {
					if next, err = s.allowed(projectDir, base); err != nil {
						return s.refused(err, projectDir, "include")
					}
				}
				// The loader reads the .env of an included directory.
				env, err := s.allowed(filepath.Join(next, ".env"), next)
				if err == nil {
					err = s.readable(env)
				}
				if err != nil {
					return s.refused(err, p, "include")
				}
				s.reads(env)
			}
			if err := s.file(path, next, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// allowed returns the absolute path that name means, or says why the release may
// not refer to it.
func (s *scan) allowed(name, base string) (string, error) {
	value, err := template.Substitute(name, s.lookup)
	if err != nil {
		return "", fmt.Errorf("%q: %w", name, err)
	}
	if strings.Contains(value, "://") || strings.HasPrefix(value, "git@") || strings.HasPrefix(value, "oci:") || strings.Contains(value, ".git#") {
		return "", fmt.Errorf("%q is a remote resource, which is not followed: put the file into the release", name)
	}
	path := value
	if !filepath.IsAbs(path) {
		path = filepath.Join(base, path)
	}
	rel, inside := s.inside(path)
	switch {
	case !inside && !filepath.IsAbs(value):
		if _, inside := s.inside(base); inside {
			// Where it leads to depends on where the agent keeps the release.
			return "", fmt.Errorf("%q is outside of the release: put the file into it, or name it by an absolute path", name)
		}
		fallthrough // beside a file of the host that was allowed
	case !inside:
		if why := s.hostFile(path); why != "" {
			return "", errors.New(why)
		}
		return path, nil
	}
	if _, err := s.root.Stat(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%q leads outside of the release, or cannot be read: %w", name, err)
	}
	return filepath.Join(s.dir, rel), nil
}

// inside returns path relative to the bundle, and whether it lies in it.
func (s *scan) inside(path string) (rel string, ok bool) {
	rel, err := filepath.Rel(s.dir, path)
	return rel, err == nil && filepath.IsLocal(rel)
}

// refused says where in the Compose files stands what err is about: name, at keys.
func (s *scan) refused(err error, name string, keys ...string) error {
	text := fmt.Sprintf("%s: %v", strings.Join(keys, "."), err)
	if at := s.find(name, keys...); at != "" {
		text = at + ": " + text
	}
	return errors.New(text)
}

// open opens a file that allowed has returned. It must be a regular one: another
// could have no end.
func (s *scan) open(path string) (*os.File, error) {
	open, stat := os.Open, os.Stat
	if rel, ok := s.inside(path); ok {
		open = func(string) (*os.File, error) { return s.root.Open(rel) }
		stat = func(string) (fs.FileInfo, error) { return s.root.Stat(rel) }
	}
	info, err := stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	return open(path)
}

// readable refuses a file which the loader reads whole, and which has no end or
// is too large. Whether it may be missing, the loader knows.
func (s *scan) readable(path string) error {
	f, err := s.open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxEnvFile {
		return fmt.Errorf("read %s: it is larger than %d MiB", filepath.Base(path), maxEnvFile>>20)
	}
	return nil
}

// parse returns the documents of a YAML file, within the bounds of depth and size.
// A file that is missing has none: whether it may be, the loader knows.
func (s *scan) parse(path string) ([]*yaml.Node, error) {
	if docs, ok := s.docs[path]; ok {
		return docs, nil
	}
	name := s.name(path)
	f, err := s.open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	data, err := readCapped(f, maxComposeFile)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(s.docs) >= maxComposeFiles {
		return nil, fmt.Errorf("the release has more than %d Compose files that include or extend each other", maxComposeFiles)
	}
	var docs []*yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var node yaml.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			s.docs[path], s.order = docs, append(s.order, path)
			return docs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("parse %s: %s", name, deploy.OneLine(strings.TrimPrefix(err.Error(), "yaml: ")))
		}
		if err := s.bounds.Check(&node); err != nil {
			return nil, fmt.Errorf("parse %s: %w", name, err)
		}
		docs = append(docs, &node)
	}
}

// name returns what sentences call a file: its path in the bundle, or on the host.
func (s *scan) name(path string) string {
	if rel, ok := s.inside(path); ok {
		return rel
	}
	return path
}

// plain turns a YAML node that is within bounds into maps, lists and strings.
func plain(n *yaml.Node) any {
	switch n.Kind {
	case yaml.AliasNode:
		return plain(n.Alias)
	case yaml.DocumentNode:
		if len(n.Content) == 0 {
			return nil
		}
		return plain(n.Content[0])
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			list = append(list, plain(c))
		}
		return list
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			v := plain(n.Content[i+1])
			if key := scalar(n.Content[i]); key == "<<" {
				mergeInto(m, v)
			} else {
				m[key] = v
			}
		}
		return m
	default:
		return n.Value
	}
}

// scalar returns the text of a node that may be an alias.
func scalar(n *yaml.Node) string {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n.Value
}

// mergeInto applies a YAML merge key: what is there already wins.
func mergeInto(m map[string]any, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if _, ok := m[k]; !ok {
				m[k] = e
			}
		}
	case []any:
		for _, e := range v {
			mergeInto(m, e)
		}
	}
}

func stringList(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var list []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				list = append(list, s)
			} else if m, ok := e.(map[string]any); ok {
				list = append(list, stringList(m["path"])...)
			}
		}
		return list
	}
	return nil
}
