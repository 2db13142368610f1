package compose

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/consts"
)

// sources is where a bundle keeps what `docker compose` would read in it. Paths are
// relative to the bundle.
type sources struct {
	base       string   // where docker compose would be run
	projectDir string   // where relative paths of the files start
	files      []string // the Compose files, in their order
	env        rowEnv   // what the files see of the world: the row's env, or the bundle's own .env
}

// locate finds the Compose files of a bundle, as `docker compose` would in the
// directory that findDir finds: those that COMPOSE_FILE names, or the one with a usual
// name. An override file beside the latter is not used, as it never was where docker
// compose was given its file by name: it is there for developers. COMPOSE_FILE may
// name it.
func locate(dir *os.Root, row rowEnv) (sources, error) {
	var missing error // in the directory that has most of what COMPOSE_FILE names
	most := -1
	tried, unread := map[string]sources{}, map[string]error{}
	base, err := findDir(dir, func(d string) bool {
		s := sources{base: d, projectDir: d, env: row}
		if !row.given {
			s.env, unread[d] = bundleEnv(dir, rowEnv{}, d)
		}
		found, err := s.find(dir)
		if err != nil && len(s.files) > most {
			missing, most = err, len(s.files)
		}
		tried[d] = s
		return found
	})
	switch {
	case err != nil:
		return sources{}, err
	case base == "" && missing != nil:
		return sources{}, missing
	case base == "":
		return sources{}, noFile(dir)
	case unread[base] != nil:
		return sources{}, unread[base]
	}
	s := tried[base]
	return s, s.complete(dir, row)
}

// find sets the files of s, and reports whether there are any. Its error names one
// that COMPOSE_FILE names and the bundle does not have.
func (s *sources) find(dir *os.Root) (bool, error) {
	list := s.env.values[consts.ComposeFilePath]
	if list == "" {
		file := firstFile(dir, s.base, cli.DefaultFileNames)
		s.files = []string{file}
		return file != "", nil
	}
	separator := s.env.values[consts.ComposePathSeparator]
	if separator == "" {
		separator = string(os.PathListSeparator)
	}
	for _, name := range strings.Split(list, separator) {
		path := filepath.Join(s.base, name)
		switch {
		case name == "-":
			return false, fmt.Errorf("find the Compose file: %s names -, and nothing is read from standard input here: name files of the release", consts.ComposeFilePath)
		case strings.Contains(name, "://"):
			return false, fmt.Errorf("find the Compose file: %s names %q, a remote resource, which is not followed: put the file into the release", consts.ComposeFilePath, name)
		case filepath.IsAbs(name), !filepath.IsLocal(path):
			return false, fmt.Errorf("find the Compose file: %s names %q, which is outside of the release: put the file into it", consts.ComposeFilePath, name)
		}
		if info, err := dir.Stat(path); err != nil || !info.Mode().IsRegular() {
			return false, fmt.Errorf("find the Compose file: %s of the release's env names %q, and the release has no such file", consts.ComposeFilePath, name)
		}
		s.files = append(s.files, path)
	}
	return true, nil
}

// complete makes of s what follows from its files: the project's directory is that
// of the first one, whose .env is read, too.
func (s *sources) complete(dir *os.Root, row rowEnv) (err error) {
	s.projectDir = filepath.Dir(s.files[0])
	if !row.given && s.projectDir != s.base {
		s.env, err = bundleEnv(dir, s.env, s.projectDir)
	}
	return err
}

// bundleEnv returns env with what the .env of a directory of the bundle adds to it.
func bundleEnv(dir *os.Root, env rowEnv, sub string) (rowEnv, error) {
	path := filepath.Join(sub, envFile)
	if env.values == nil {
		env.values = map[string]string{}
	}
	info, err := dir.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
		return env, nil
	}
	if err != nil {
		return env, fmt.Errorf("read %s of the release: %w", path, err)
	}
	text, err := readFile(dir, path)
	if err != nil {
		return env, fmt.Errorf("read %s of the release: %w", path, err)
	}
	values, err := parseEnv(text)
	if err != nil {
		return env, fmt.Errorf("read %s of the release: %w", path, err)
	}
	for k, v := range env.values {
		values[k] = v
	}
	return rowEnv{text: text, values: values}, nil
}

// envNames are the paths of the .env files that docker compose would read for s.
func (s *sources) envNames() []string {
	return slices.Compact([]string{filepath.Join(s.base, envFile), filepath.Join(s.projectDir, envFile)})
}

// override returns the name of an override file that is not used, or "".
func (s *sources) override(dir *os.Root) string {
	if s.env.values[consts.ComposeFilePath] != "" {
		return ""
	}
	return firstFile(dir, s.base, cli.DefaultOverrideFileNames)
}
