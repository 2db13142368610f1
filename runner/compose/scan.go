package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"go.yaml.in/yaml/v3"
)

const (
	maxComposeFile  = 4 << 20 // bytes of one file
	maxComposeFiles = 64      // files that include or extend each other
	// maxNodes bounds the YAML nodes of a release once its aliases are
	// expanded. The loader walks through aliases itself, without the YAML
	// library's own guard against bombs.
	maxNodes = 100_000
)

// scan reads a bundle's Compose files before the loader does, and refuses what
// the loader would follow to anywhere: files outside of the bundle, remote
// resources, alias bombs, files without end.
type scan struct {
	root   *os.Root // the bundle
	dir    string   // its real path
	lookup func(string) (string, bool)
	nodes  int
	files  map[string]bool
	read   map[string]bool // what the loader reads, there or not, relative to dir
}

// scanBundle checks the Compose files, absolute paths below dir, and every
// file they draw in. It returns all of them, relative to dir.
func scanBundle(dir, projectDir string, files []string, values map[string]string) (map[string]bool, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the bundle: %w", err)
	}
	defer root.Close()
	s := &scan{root: root, dir: dir, files: map[string]bool{}, read: map[string]bool{}, lookup: func(k string) (string, bool) {
		v, ok := values[k]
		return v, ok
	}}
	for _, f := range files {
		if err := s.file(f, projectDir, true); err != nil {
			return nil, err
		}
	}
	return s.read, nil
}

// reads notes that the loader reads path, an absolute one.
func (s *scan) reads(path string) {
	if rel, err := filepath.Rel(s.dir, path); err == nil {
		s.read[rel] = true
	}
}

// file checks one Compose file. Relative paths in it start at base. What an
// extended file includes is not followed by the loader, so neither here.
func (s *scan) file(path, base string, includes bool) error {
	key := fmt.Sprint(path, "\x00", base, includes)
	if s.files[key] {
		return nil
	}
	s.files[key] = true
	s.reads(path)
	if len(s.files) > maxComposeFiles {
		return fmt.Errorf("the release has more than %d Compose files that include or extend each other", maxComposeFiles)
	}
	docs, err := s.parse(path)
	if err != nil {
		return err
	}
	for _, doc := range docs {
		top, ok := doc.(map[string]any)
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
					continue // the engine mounts an absolute path of the host, as it does for volumes
				}
				if _, err := s.inside(file, base); err != nil {
					return fmt.Errorf("%s.%s.file: %w", kind, name, err)
				}
			}
		}
	}
	return nil
}

func (s *scan) service(name string, service map[string]any, base string) error {
	if extends, ok := service["extends"].(map[string]any); ok {
		if file, ok := extends["file"].(string); ok && file != "" {
			path, err := s.inside(file, base)
			if err != nil {
				return fmt.Errorf("services.%s.extends: %w", name, err)
			}
			if err := s.file(path, filepath.Dir(path), false); err != nil {
				return err
			}
		}
	}
	for _, file := range stringList(service["label_file"]) {
		path, err := s.inside(file, base)
		if err != nil {
			return fmt.Errorf("services.%s.label_file: %w", name, err)
		}
		s.reads(path)
	}
	for _, file := range stringList(service["env_file"]) {
		if path, err := s.inside(file, base); err == nil { // another one is refused later
			s.reads(path)
		}
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
				path, err := s.inside(f, base)
				if err != nil {
					return fmt.Errorf("include.env_file: %w", err)
				}
				s.reads(path)
			}
		}
		next := ""
		for i, p := range paths {
			path, err := s.inside(p, base)
			if err != nil {
				return fmt.Errorf("include: %w", err)
			}
			if i == 0 {
				next = filepath.Dir(path)
				if projectDir != "" {
					if next, err = s.inside(projectDir, base); err != nil {
						return fmt.Errorf("include.project_directory: %w", err)
					}
				}
				// The loader reads the .env of an included directory.
				env, err := s.inside(".env", next)
				if err != nil {
					return fmt.Errorf("include: %w", err)
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

// inside returns the absolute path that name means, or says why the release
// may not refer to it.
func (s *scan) inside(name, base string) (string, error) {
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
	rel, err := filepath.Rel(s.dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("%q is outside of the release: put the file into it", name)
	}
	if _, err := s.root.Stat(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%q leads outside of the release, or cannot be read: %w", name, err)
	}
	return filepath.Join(s.dir, rel), nil
}

// parse returns the documents of a YAML file as plain values. A file that is
// missing has none: whether it may be, the loader knows.
func (s *scan) parse(path string) ([]any, error) {
	rel, err := filepath.Rel(s.dir, path)
	if err != nil {
		return nil, err
	}
	f, err := s.root.Open(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", rel, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: it is not a regular file", rel)
	}
	data, err := readCapped(f, maxComposeFile)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", rel, err)
	}
	var docs []any
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var node yaml.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("parse %s: %s", rel, oneLine(strings.TrimPrefix(err.Error(), "yaml: ")))
		}
		value, err := s.value(&node)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", rel, err)
		}
		docs = append(docs, value)
	}
}

// value turns a YAML node into maps, lists and strings, counting every node it
// meets, through aliases as well.
func (s *scan) value(n *yaml.Node) (any, error) {
	if s.nodes++; s.nodes > maxNodes {
		return nil, fmt.Errorf("the Compose files hold more than %d values once their YAML aliases are expanded", maxNodes)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return s.value(n.Alias)
	case yaml.DocumentNode:
		if len(n.Content) == 0 {
			return nil, nil
		}
		return s.value(n.Content[0])
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := s.value(c)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := s.value(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			key := n.Content[i]
			if key.Kind == yaml.AliasNode {
				key = key.Alias
			}
			if key.Value == "<<" {
				mergeInto(m, v)
			} else {
				m[key.Value] = v
			}
		}
		return m, nil
	default:
		return n.Value, nil
	}
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
