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
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
)

// contentsLabel is a digest of what the configs and secrets of a service hold, and
// of what the release holds where its bind mounts begin. Unlike the agent's other
// labels it is part of Compose's config hash, which by itself covers their names
// only: a release with other contents would be up, and its containers would go on
// with the old ones. A file that is mounted by itself stays the old one in any case.
const contentsLabel = "com.wrktalk.agent.contents"

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

// labelContents sets contentsLabel for every service of p, loaded from the bundle at
// dir, that mounts some of it, and refuses configs and secrets that Compose could
// not mount: it would find out when the old containers are gone.
func (b *backend) labelContents(p *types.Project, dir string) error {
	s, project := b.store, b.job.Compose.Project
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the bundle: %w", err)
	}
	defer root.Close()
	for name, service := range p.Services {
		mounts, err := bundleMounts(service, root, dir)
		if err != nil {
			return err
		}
		if len(service.Configs)+len(service.Secrets)+len(mounts) == 0 {
			continue
		}
		key, err := s.key()
		if err != nil {
			return err
		}
		c := contentDigest{p: p, dir: dir, mac: hmac.New(sha256.New, key), hostFile: func(path string) (string, bool) {
			path = s.hostPath(path, dir, project)
			_, err := os.Stat(path)
			return path, !errors.Is(err, fs.ErrNotExist) || b.self() != nil // the host's files are not seen from a container
		}}
		digest, err := c.of(service)
		if err != nil {
			return err
		}
		service.Labels = maps.Clone(service.Labels).Add(contentsLabel, digest)
		p.Services[name] = service
	}
	return nil
}

// of returns the digest of what the configs, secrets and mounts of service hold, or
// why one of them could not be mounted.
func (c *contentDigest) of(service types.ServiceConfig) (_ string, err error) {
	if c.root, err = os.OpenRoot(c.dir); err != nil {
		return "", fmt.Errorf("open the bundle: %w", err)
	}
	defer c.root.Close()
	p, root, dir := c.p, c.root, c.dir
	for _, ref := range service.Configs {
		if err := c.add(service, "config", types.FileReferenceConfig(ref), types.FileObjectConfig(p.Configs[ref.Source])); err != nil {
			return "", err
		}
	}
	for _, ref := range service.Secrets {
		if err := c.add(service, "secret", types.FileReferenceConfig(ref), types.FileObjectConfig(p.Secrets[ref.Source])); err != nil {
			return "", err
		}
	}
	mounts, err := bundleMounts(service, root, dir)
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		fmt.Fprintf(c.mac, "mount %q ", m.target)
		if err := c.tree(m.source); err != nil {
			return "", fmt.Errorf("service %q: read what %s mounts: %w", service.Name, m.target, err)
		}
	}
	return hex.EncodeToString(c.mac.Sum(nil)), nil
}

// bundleMount is a bind mount of something that the bundle holds.
type bundleMount struct{ source, target string } // source is relative to the bundle

// bundleMounts returns the bind mounts of a service whose source is in the bundle at
// dir, sorted by target. What only containers write is none of them.
func bundleMounts(service types.ServiceConfig, root *os.Root, dir string) ([]bundleMount, error) {
	var found []bundleMount
	for _, v := range service.Volumes {
		rel, err := filepath.Rel(dir, v.Source)
		if v.Type != types.VolumeTypeBind || err != nil || !filepath.IsLocal(rel) {
			continue
		}
		switch _, err := root.Lstat(rel); {
		case err == nil:
			found = append(found, bundleMount{rel, v.Target})
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
			return nil, fmt.Errorf("service %q mounts %s of the release, which leads outside of it or cannot be read: %w", service.Name, rel, err)
		}
	}
	slices.SortStableFunc(found, func(a, b bundleMount) int { return strings.Compare(a.target, b.target) })
	return found, nil
}

// contentDigest digests the configs and secrets of one service.
type contentDigest struct {
	p    *types.Project
	root *os.Root // the bundle
	dir  string   // its real path
	// hostFile tells which path of the host one beside the bundle is, and whether it
	// may be there.
	hostFile func(string) (path string, maybe bool)
	mac      hash.Hash
}

func (c *contentDigest) add(service types.ServiceConfig, kind string, ref types.FileReferenceConfig, object types.FileObjectConfig) error {
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
		file, maybe := c.hostFile(object.File)
		if !maybe {
			return refuse("this host has no file %s", file)
		}
		fmt.Fprintf(c.mac, "host %q\n", file)
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
		return c.tree(rel)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return refuse("read %s: %v", rel, err)
	}
	fmt.Fprintf(c.mac, "file %s %x\n", info.Mode().Perm(), sum.Sum(nil))
	return nil
}

// tree adds the file or directory name of the bundle, with all that is below it.
func (c *contentDigest) tree(name string) error {
	return fs.WalkDir(c.root.FS(), filepath.ToSlash(name), func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := lookAt(c.root, p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(name, p)
		if err != nil {
			return err
		}
		if e.UID == os.Geteuid() && e.GID == os.Getegid() {
			e.UID, e.GID = 0, 0 // it is the agent's, whoever that is
		}
		fmt.Fprintf(c.mac, "%s %q %s %d %d %s %q\n", e.Type, rel, e.Mode, e.UID, e.GID, e.SHA256, e.Target)
		if target := path.Join(path.Dir(p), e.Target); p == name && e.Type == typeLink && c.resolves(p, target) {
			return c.tree(target) // the engine mounts what it leads to
		}
		return nil
	})
}

// resolves reports whether the link name leads to target, which is there.
func (c *contentDigest) resolves(name, target string) bool {
	info, err := c.root.Stat(name)
	if err != nil {
		return false // nowhere, or in a circle
	}
	to, err := c.root.Stat(target)
	return err == nil && os.SameFile(info, to)
}
