package operator

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/fetcher/unpack"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
)

// Archive is a release as the database stores it, a tar.gz. It reads from the
// beginning; the caller closes it.
type Archive struct {
	*os.File
	Size   int64    // in bytes
	SHA256 string   // in hex
	Notes  []string // what a person should know about how it was packed, in sentences
}

// OpenArchive opens the archive at path, for a platform's release. A directory, or
// a single file where that may be a release, is packed into one that is gone once
// it is closed; ctx can end that.
func OpenArchive(ctx context.Context, path string, p platform.Platform) (*Archive, error) {
	a, err := openOrPack(ctx, path, p)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err = a.Seek(0, io.SeekStart); err == nil {
		a.Size, err = io.Copy(h, readerOf(ctx, a.File))
	}
	if err == nil {
		_, err = a.Seek(0, io.SeekStart)
	}
	if err != nil {
		a.Close()
		return nil, err
	}
	a.SHA256 = hex.EncodeToString(h.Sum(nil))
	return a, nil
}

func openOrPack(ctx context.Context, path string, p platform.Platform) (*Archive, error) {
	path, err := filepath.EvalSymlinks(path) // a link to a directory is packed as that
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	single := false
	switch {
	case info.IsDir():
	case !info.Mode().IsRegular():
		return nil, errors.New("it is neither a file nor a directory")
	default:
		if single, err = isSingleFile(path); err != nil {
			return nil, err
		}
		if single && !p.SingleFile {
			return nil, fmt.Errorf("it is a single file: a %s release is a directory with %s, or a tar.gz of one", p.Name, p.MainFiles()[0])
		}
	}
	if !info.IsDir() && !single {
		f, err := os.Open(path)
		return &Archive{File: f}, err
	}
	f, err := os.CreateTemp("", "wrktalk-push-*.tar.gz")
	if err != nil {
		return nil, err
	}
	a := &Archive{File: f}
	if err = errors.Join(os.Remove(f.Name()), a.pack(ctx, path, info, p)); err != nil {
		f.Close()
		return nil, err
	}
	return a, nil
}

// isSingleFile reports whether the file at path is a release's main file, and no
// archive.
func isSingleFile(path string) (bool, error) {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".yaml", ".yml":
		return true, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, unpack.HeadSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, err
	}
	return unpack.IsComposeFile(head[:n]), nil
}

// packer writes a tar archive that is the same for the same content: no times, names
// in order, and owners only where they can matter, for root.
type packer struct {
	ctx    context.Context
	tw     *tar.Writer
	dir    string
	out    ignored
	p      platform.Platform
	owners bool
	// What was left out.
	git     bool
	ignored int
}

// pack writes the directory, or the single file, at path as a tar.gz.
func (a *Archive) pack(ctx context.Context, path string, info fs.FileInfo, p platform.Platform) error {
	gz := gzip.NewWriter(a.File)
	k := packer{ctx: ctx, tw: tar.NewWriter(gz), dir: path, p: p, owners: os.Geteuid() == 0}
	var err error
	if info.IsDir() {
		if k.out, err = readIgnored(path, p); err == nil {
			err = k.tree()
		}
	} else {
		name := filepath.Base(path)
		if !slices.Contains(p.MainFiles(), name) {
			a.Notes = append(a.Notes, fmt.Sprintf("%s is stored as %s, the name by which it is found", name, p.MainFiles()[0]))
			name = p.MainFiles()[0]
		}
		if beside := namedBeside(path); len(beside) > 0 {
			a.Notes = append(a.Notes, fmt.Sprintf("%s names %s, which a single file does not bring along: push the directory if the release needs that",
				filepath.Base(path), strings.Join(beside, ", ")))
		}
		err = k.file(path, name, info)
	}
	if k.git {
		a.Notes = append(a.Notes, ".git was left out")
	}
	if k.ignored > 0 {
		a.Notes = append(a.Notes, fmt.Sprintf("what %s names was left out (%d)", p.IgnoreFile, k.ignored))
	}
	return errors.Join(err, k.tw.Close(), gz.Close())
}

// namedBeside returns what a single Compose file names of the files beside it.
func namedBeside(file string) []string {
	dir, name := filepath.Split(file)
	n := named{dir: filepath.Clean(dir), files: map[string]bool{}, dirs: map[string]bool{}}
	n.scan(name)
	var beside []string
	for _, kind := range []map[string]bool{n.files, n.dirs} {
		for rel := range kind {
			if rel != name && rel != ".env" {
				beside = append(beside, rel)
			}
		}
	}
	slices.Sort(beside)
	return beside
}

func (k *packer) tree() error {
	return filepath.WalkDir(k.dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil || file == k.dir {
			return err
		}
		rel, err := filepath.Rel(k.dir, file)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		switch {
		case path.Base(rel) == ".git":
			k.git = true
		case k.out.file(rel, e.IsDir()):
			k.ignored++
			if e.IsDir() && !k.out.covers(rel) {
				return nil
			}
		default:
			info, err := e.Info()
			if err != nil {
				return err
			}
			return k.file(file, rel, info)
		}
		if e.IsDir() {
			return filepath.SkipDir
		}
		return nil
	})
}

func (k *packer) file(file, name string, info fs.FileInfo) error {
	if err := k.ctx.Err(); err != nil {
		return context.Cause(k.ctx)
	}
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Format: tar.FormatPAX}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && k.owners {
		h.Uid, h.Gid = int(st.Uid), int(st.Gid)
	}
	switch {
	case info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return k.tw.WriteHeader(h)
	case info.Mode().Type() == fs.ModeSymlink:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		return k.tw.WriteHeader(h)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is neither a file, a directory nor a symbolic link: a release cannot hold it", file)
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := k.tw.WriteHeader(h); err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(k.tw, readerOf(k.ctx, f))
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n < info.Size() {
		return fmt.Errorf("%s changed while it was packed", file)
	}
	return err
}

// readerOf reads from r until ctx ends.
func readerOf(ctx context.Context, r io.Reader) io.Reader { return &contextReader{ctx, r} }

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
