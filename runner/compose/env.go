package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/cli/pkg/kvfile"
)

// maxEnvFile bounds the row's env and every env file of a bundle, in bytes.
const maxEnvFile = 4 << 20

// `format: raw` is an addition of the CLI to the loader; a bundle may use it.
func init() {
	dotenv.RegisterFormat("raw", func(r io.Reader, _ string, vars map[string]string, lookup func(string) (string, bool)) error {
		lines, err := kvfile.ParseFromReader(r, lookup)
		for _, line := range lines {
			name, value, _ := strings.Cut(line, "=")
			vars[name] = value
		}
		return err
	})
}

// rowEnv is the env text of a release's row: everything a bundle may see of
// the world around it.
type rowEnv struct {
	text   []byte
	given  bool // the row has an env, be it empty
	values map[string]string
}

// readEnv reads the row's env from file, "" for none. Its variables may refer
// to each other, and to nothing else.
func readEnv(file string) (rowEnv, error) {
	env := rowEnv{values: map[string]string{}}
	if file == "" {
		return env, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return env, fmt.Errorf("read the release's env: %w", err)
	}
	defer f.Close()
	if env.text, err = readCapped(f, maxEnvFile); err != nil {
		return env, fmt.Errorf("read the release's env: %w", err)
	}
	env.given = true
	values, err := dotenv.ParseWithLookup(bytes.NewReader(env.text), func(string) (string, bool) { return "", false })
	if err != nil {
		return env, fmt.Errorf("read the release's env: %w", unquoted(err))
	}
	env.values = values
	return env, nil
}

var errorLine = regexp.MustCompile(`line (\d+)`)

// unquoted replaces an error of the dotenv parser, which quotes the offending
// line and with it perhaps a secret.
func unquoted(err error) error {
	if m := errorLine.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("line %s is not NAME=VALUE, or a quote is not closed", m[1])
	}
	return errors.New("it is not a list of NAME=VALUE lines")
}

// readCapped reads r to its end, or fails when it is longer than limit bytes.
func readCapped(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it is larger than %d MiB", limit>>20)
	}
	return data, nil
}

// resolveServices replaces each service's env_file by what it says, as the CLI
// does it: later files win over earlier ones, `environment` wins over all. The
// file .env of the project directory is the row's env and exists nowhere else;
// other files are read from the bundle at dir and cannot be outside of it.
func resolveServices(p *types.Project, dir string, env rowEnv) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the bundle: %w", err)
	}
	defer root.Close()
	for name, s := range p.Services {
		explicit := s.Environment.Resolve(p.Environment.Resolve)
		values := explicit.ToMapping()
		lookup := func(k string) (string, bool) {
			if v, ok := p.Environment.Resolve(k); ok {
				return v, true
			}
			if v, ok := explicit[k]; ok && v != nil {
				return *v, true
			}
			return "", false
		}
		for _, f := range s.EnvFiles {
			data, err := readServiceEnv(root, dir, p.WorkingDir, f, env)
			if err != nil {
				return fmt.Errorf("read env_file of service %q: %w", name, err)
			}
			if data == nil {
				continue
			}
			if err := dotenv.ParseWithFormat(bytes.NewReader(data), filepath.Base(f.Path), values, lookup, f.Format); err != nil {
				return fmt.Errorf("read env_file %s of service %q: %w", filepath.Base(f.Path), name, unquoted(err))
			}
		}
		s.Environment = values.ToMappingWithEquals().OverrideBy(explicit)
		s.EnvFiles = nil
		p.Services[name] = s
	}
	return nil
}

// readServiceEnv returns the text of one env_file entry, nil when it is missing
// and may be.
func readServiceEnv(root *os.Root, dir, projectDir string, f types.EnvFile, env rowEnv) ([]byte, error) {
	if filepath.Clean(f.Path) == filepath.Join(projectDir, ".env") {
		switch {
		case env.given:
			return append([]byte{}, env.text...), nil
		case f.Required:
			return nil, errors.New("it names .env, but the release has no env in the database")
		}
		return nil, nil
	}
	rel, err := filepath.Rel(dir, f.Path)
	if err != nil || !filepath.IsLocal(rel) {
		return nil, fmt.Errorf("%s is outside of the release", f.Path)
	}
	file, err := root.Open(rel)
	if errors.Is(err, fs.ErrNotExist) {
		if f.Required {
			return nil, fmt.Errorf("the release has no file %s", rel)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s in the release: %w", rel, err)
	}
	defer file.Close()
	data, err := readCapped(file, maxEnvFile)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", rel, err)
	}
	return append([]byte{}, data...), nil
}
