package compose

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/compose-spec/compose-go/v2/cli"
	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// composeFiles returns the files of the bundle at dir, relative to it, that
// decide what is started: those the loader reads, and those it would prefer to
// them if they were there. Where the row has an env, .env is none of them.
func composeFiles(dir string, env rowEnv) ([]string, error) {
	src, read, err := scanBundle(dir, env, anyFile)
	if err != nil {
		return nil, err
	}
	for _, name := range cli.DefaultFileNames {
		read[name] = true
		read[filepath.Join(src.base, name)] = true
	}
	for _, name := range src.envNames() {
		read[name] = true
		if env.given {
			delete(read, name)
		}
	}
	return slices.Sorted(maps.Keys(read)), nil
}

// anyFile allows every file of the host: whoever loads the bundle asks again.
func anyFile(string) string { return "" }

// repair makes the Compose files of a kept bundle what they are in rel's
// payload, which was verified, and returns those that were not. Other files are
// left alone: containers may have written to them.
func (s *store) repair(name string, rel protocol.Release, env rowEnv) ([]string, error) {
	files, err := composeFiles(rel.PayloadDir, env)
	if err != nil {
		return nil, err
	}
	src, err := os.OpenRoot(rel.PayloadDir)
	if err != nil {
		return nil, fmt.Errorf("open the release: %w", err)
	}
	defer src.Close()
	var changed []string
	for _, f := range files {
		to := filepath.Join(name, f)
		want, err := digestOf(src, f)
		if err != nil {
			return nil, err
		}
		if have, err := digestOf(s.bundles, to); err == nil && have == want {
			continue
		}
		changed = append(changed, f)
		if err := s.bundles.RemoveAll(to); err != nil {
			return nil, fmt.Errorf("put %s of the release back: %w", f, err)
		}
		if want == "" {
			continue // it is not part of the release
		}
		data, err := src.ReadFile(f)
		if err == nil {
			var info fs.FileInfo
			if info, err = src.Stat(f); err == nil {
				err = durable.WriteFile(s.bundles, to, data, info.Mode().Perm())
			}
			if err == nil {
				err = chown(info, func(uid, gid int) error { return s.bundles.Chown(to, uid, gid) })
			}
		}
		if err != nil {
			return nil, fmt.Errorf("put %s of the release back: %w", f, err)
		}
	}
	return changed, nil
}

// modifiedFiles returns the Compose files of a kept bundle that are not what they were
// when it was kept.
func (s *store) modifiedFiles(name string, env rowEnv) ([]string, error) {
	data, err := s.bundles.ReadFile(keptPrefix + name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the digests of the bundle: %w", err)
	}
	if len(data) == 0 {
		return nil, nil // kept by an agent that wrote none
	}
	var digests map[string]string
	if err := json.Unmarshal(data, &digests); err != nil {
		return nil, fmt.Errorf("read the digests of the bundle: %s: %w", keptPrefix+name, err)
	}
	files, err := composeFiles(s.path(name), env)
	if err != nil {
		return nil, err
	}
	var changed []string
	for _, f := range files {
		have, err := digestOf(s.bundles, filepath.Join(name, f))
		if err != nil {
			return nil, err
		}
		if have != digests[f] {
			changed = append(changed, f)
		}
	}
	return changed, nil
}

// digestOf returns the SHA-256 of a regular file, "" when it does not exist.
func digestOf(root *os.Root, name string) (string, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // no pipe keeps it waiting
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "no regular file", err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
