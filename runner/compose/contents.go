package compose

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
)

// LabelContents is a digest of what the configs and secrets of a service hold.
// Unlike the agent's other labels it is part of Compose's config hash, which by
// itself covers their names only: a release with other contents would be up,
// and its containers would go on with the old ones.
const LabelContents = "com.wrktalk.agent.contents"

// keyFile holds the key of that digest. Labels are shown by many tools, and
// without a key a short secret could be guessed from its digest.
const (
	keyFile = ".contents-key"
	keySize = 32 // bytes
)

// key returns the store's key, and makes it where there is none. Losing it only
// recreates, once, the containers of services that have configs or secrets.
func (s *store) key() ([]byte, error) {
	key, err := s.root.ReadFile(keyFile)
	if err == nil && len(key) == keySize {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the key of labels: %w", err)
	}
	key = make([]byte, keySize)
	_, _ = rand.Read(key) // it never fails
	if err := durable.WriteFile(s.root, keyFile, key, 0o600); err != nil {
		return nil, fmt.Errorf("keep the key of labels: %w", err)
	}
	return key, nil
}

// labelContents sets LabelContents for every service of p that has configs or
// secrets, and refuses those that Compose could not mount: it would find out when
// the old containers are gone.
func (s *store) labelContents(p *types.Project, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the bundle: %w", err)
	}
	defer root.Close()
	for name, service := range p.Services {
		if len(service.Configs)+len(service.Secrets) == 0 {
			continue
		}
		key, err := s.key()
		if err != nil {
			return err
		}
		c := contents{p: p, root: root, dir: dir, mac: hmac.New(sha256.New, key)}
		for _, ref := range service.Configs {
			if err := c.add(service, "config", types.FileReferenceConfig(ref), types.FileObjectConfig(p.Configs[ref.Source])); err != nil {
				return err
			}
		}
		for _, ref := range service.Secrets {
			if err := c.add(service, "secret", types.FileReferenceConfig(ref), types.FileObjectConfig(p.Secrets[ref.Source])); err != nil {
				return err
			}
		}
		service.Labels = maps.Clone(service.Labels).Add(LabelContents, hex.EncodeToString(c.mac.Sum(nil)))
		p.Services[name] = service
	}
	return nil
}

// contents digests the configs and secrets of one service.
type contents struct {
	p    *types.Project
	root *os.Root // the bundle
	dir  string   // its real path
	mac  hash.Hash
}

func (c *contents) add(service types.ServiceConfig, kind string, ref types.FileReferenceConfig, object types.FileObjectConfig) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("service %q: %s %q: %s", service.Name, kind, ref.Source, fmt.Sprintf(format, args...))
	}
	text, inline := object.Content, object.Content != ""
	if !inline && object.Environment != "" {
		if text, inline = c.p.Environment[object.Environment]; !inline {
			return refuse("the release's env has no variable %s", object.Environment)
		}
	}
	fmt.Fprintf(c.mac, "%q %q %q ", kind, ref.Source, ref.Target)
	switch {
	case bool(object.External):
		return refuse("it is external, which needs a swarm: put it into the release")
	case inline && text != "" && service.ReadOnly:
		return refuse("a read_only service can be given files only")
	case inline:
		fmt.Fprintf(c.mac, "text %q\n", text)
		return nil
	case object.File == "":
		return refuse("it has neither file nor content")
	}
	if filepath.Clean(object.File) == filepath.Join(c.p.WorkingDir, ".env") {
		return refuse("it is .env, which comes from the database and is not on this host: use environment instead of file")
	}
	rel, err := filepath.Rel(c.dir, object.File)
	if err != nil || !filepath.IsLocal(rel) {
		// A file of the host is not the release's: it may change as it likes.
		if _, err := os.Stat(object.File); errors.Is(err, fs.ErrNotExist) {
			return refuse("this host has no file %s", object.File)
		}
		fmt.Fprintf(c.mac, "host %q\n", object.File)
		return nil
	}
	f, err := c.root.Open(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return refuse("the release has no file %s", rel)
	}
	if err != nil {
		return refuse("open %s: %v", rel, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return refuse("look at %s: %v", rel, err)
	}
	if !info.Mode().IsRegular() {
		fmt.Fprintf(c.mac, "other %q\n", object.File) // a directory: of another release, it is another one
		return nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return refuse("read %s: %v", rel, err)
	}
	fmt.Fprintf(c.mac, "file %s %x\n", info.Mode().Perm(), sum.Sum(nil))
	return nil
}
