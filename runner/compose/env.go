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
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/cli/pkg/kvfile"
	"golang.org/x/sys/unix"
)

// envFile is the name of the file that docker compose reads variables from.
const envFile = ".env"

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
// the world around it. Where the row has none, the bundle's own .env takes its place.
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
	values, err := parseEnv(env.text)
	if err != nil {
		return env, fmt.Errorf("read the release's env: %w", err)
	}
	env.values = values
	return env, nil
}

// parseEnv returns the variables of a .env file. Its error quotes none of it.
func parseEnv(text []byte) (map[string]string, error) {
	values, err := dotenv.ParseWithLookup(bytes.NewReader(text), func(string) (string, bool) { return "", false })
	if err != nil {
		return nil, unquoted(err)
	}
	return values, nil
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
// others are read from the bundle at dir, or from where scan has allowed it.
func resolveServices(p *types.Project, dir string, src sources) error {
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
			data, err := readServiceEnv(root, dir, src, f)
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
func readServiceEnv(root *os.Root, dir string, src sources, f types.EnvFile) ([]byte, error) {
	rel, err := filepath.Rel(dir, f.Path)
	if err != nil || !filepath.IsLocal(rel) {
		return readHostEnv(f) // scan has asked whether it may be read
	}
	isEnv := slices.Contains(src.envNames(), rel)
	if isEnv && src.env.given {
		return append([]byte{}, src.env.text...), nil
	}
	data, err := readFile(root, rel)
	switch {
	case err == nil:
		return append([]byte{}, data...), nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read %s of the release: %w", rel, err)
	case !f.Required:
		return nil, nil
	case isEnv:
		return nil, errors.New("it names .env, but the release has no env in the database, and no file .env")
	default:
		return nil, fmt.Errorf("the release has no file %s", rel)
	}
}

// readHostEnv is readServiceEnv for a file of this host.
func readHostEnv(f types.EnvFile) ([]byte, error) {
	file, err := os.OpenFile(f.Path, os.O_RDONLY|unix.O_NONBLOCK, 0) // no pipe keeps it waiting
	if errors.Is(err, fs.ErrNotExist) && !f.Required {
		return nil, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this host has no file %s", f.Path)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is not a regular file", f.Path), err)
	}
	data, err := readCapped(file, maxEnvFile)
	return append([]byte{}, data...), err
}

// readFile reads an env file of a bundle.
func readFile(root *os.Root, name string) ([]byte, error) {
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // no pipe keeps it waiting
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(errors.New("it is not a regular file"), err)
	}
	return readCapped(file, maxEnvFile)
}
