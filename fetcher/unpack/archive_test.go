package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var testLimits = Limits{Bytes: 64 << 20, Entries: 200, Depth: 8, Ratio: 100}

// archive builds a tar stream from parts; what tar.Writer would refuse to write
// comes as raw bytes.
type archive struct {
	bytes.Buffer
	err error
}

func (a *archive) header(h tar.Header, content string) *archive {
	var one bytes.Buffer
	w := tar.NewWriter(&one)
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 && h.Typeflag != tar.TypeXGlobalHeader {
		h.Mode = 0o644
	}
	if h.Typeflag == tar.TypeReg {
		h.Size = int64(len(content))
	}
	err := w.WriteHeader(&h)
	if err == nil {
		_, err = w.Write([]byte(content))
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil && a.err == nil {
		a.err = fmt.Errorf("%s: %w", h.Name, err)
	}
	a.Write(one.Bytes())
	return a
}

func (a *archive) file(name, content string) *archive {
	return a.header(tar.Header{Name: name}, content)
}

func (a *archive) dir(name string) *archive {
	return a.header(tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, "")
}

func (a *archive) symlink(name, target string) *archive {
	return a.header(tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}, "")
}

func (a *archive) link(name, target string) *archive {
	return a.header(tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}, "")
}

// raw appends a header block with a right checksum, unchecked otherwise, and
// the padded content. edit may change the block before it is summed up.
func (a *archive) raw(name string, typeflag byte, content string, edit func(block []byte)) *archive {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", len(content)))
	copy(b[136:], "00000000000\x00")
	b[156] = typeflag
	copy(b[257:], "ustar\x0000")
	if edit != nil {
		edit(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	a.Write(b)
	a.WriteString(content)
	a.Write(make([]byte, -len(content)&511))
	return a
}

// pax appends an extended header for the entry that follows.
func (a *archive) pax(records ...string) *archive {
	var all strings.Builder
	for i := 0; i+1 < len(records); i += 2 {
		body := " " + records[i] + "=" + records[i+1] + "\n"
		n := len(body)
		for n != len(body)+len(fmt.Sprint(n)) {
			n = len(body) + len(fmt.Sprint(n))
		}
		fmt.Fprintf(&all, "%d%s", n, body)
	}
	return a.raw("PaxHeaders/x", tar.TypeXHeader, all.String(), nil)
}

// tgz closes the archive and compresses it.
func (a *archive) tgz(t testing.TB) []byte {
	t.Helper()
	a.Write(make([]byte, 1024))
	return a.open(t)
}

// open compresses the archive without its end mark.
func (a *archive) open(t testing.TB) []byte {
	t.Helper()
	if a.err != nil {
		t.Fatalf("build archive: %v", a.err)
	}
	return gzipped(t, a.Bytes())
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed) // the race detector makes others too slow
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sandbox is a target directory with a victim beside it.
type sandbox struct {
	outside, dir string
	root         *os.Root
}

func newSandbox(t testing.TB) *sandbox {
	t.Helper()
	s := &sandbox{outside: t.TempDir()}
	s.dir = filepath.Join(s.outside, "target")
	err := os.Mkdir(s.dir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.outside, "victim"), []byte("keep"), 0o600)
	}
	if err == nil {
		s.root, err = os.OpenRoot(s.dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.root.Close() })
	return s
}

// extract unpacks packed, and checks what must hold whatever comes of it.
func (s *sandbox) extract(t testing.TB, packed []byte, lim Limits) (Summary, error) {
	t.Helper()
	sum, err := Extract(context.Background(), s.root, bytes.NewReader(packed), int64(len(packed)), lim)
	entries, rerr := os.ReadDir(s.outside)
	if rerr != nil {
		t.Fatal(rerr)
	}
	victim, rerr := os.ReadFile(filepath.Join(s.outside, "victim"))
	info, serr := os.Stat(filepath.Join(s.outside, "victim"))
	if len(entries) != 2 || string(victim) != "keep" || rerr != nil || serr != nil || info.Mode() != 0o600 {
		t.Errorf("the outside changed: %v, victim %q, %v %v", entries, victim, rerr, serr)
	}
	digest := sha256.Sum256(packed)
	if sum.SHA256 != hex.EncodeToString(digest[:]) || sum.Packed != int64(len(packed)) {
		t.Errorf("summary has digest %q of %d bytes, want all %d read", sum.SHA256, sum.Packed, len(packed))
	}
	if err != nil && sum.Files != nil {
		t.Error("files are listed in spite of an error")
	}
	if err == nil {
		s.compare(t, sum)
	}
	s.linksStayInside(t)
	return sum, err
}

// compare holds the summary against what lies on the disk.
func (s *sandbox) compare(t testing.TB, sum Summary) {
	t.Helper()
	listed := map[string]File{}
	for _, f := range sum.Files {
		if _, ok := listed[f.Path]; ok {
			t.Errorf("%q is listed twice", f.Path)
		}
		if _, ok := listed[filepath.Dir(f.Path)]; !ok && filepath.Dir(f.Path) != "." {
			t.Errorf("%q is listed before its directory", f.Path)
		}
		listed[f.Path] = f
	}
	walk(t, s.dir, func(name string, info fs.FileInfo) {
		st := info.Sys().(*syscall.Stat_t)
		got := File{Path: name, UID: int(st.Uid), GID: int(st.Gid)}
		full := filepath.Join(s.dir, name)
		switch {
		case info.IsDir():
			got.Type, got.Mode = TypeDir, info.Mode()&^fs.ModeDir
		case info.Mode().IsRegular():
			data, err := os.ReadFile(full)
			if err != nil {
				t.Error(err)
			}
			digest := sha256.Sum256(data)
			got.Type, got.Mode, got.Size, got.SHA256 = TypeFile, info.Mode(), info.Size(), hex.EncodeToString(digest[:])
		default:
			target, err := os.Readlink(full)
			if err != nil {
				t.Error(err)
			}
			got.Type, got.Target = TypeSymlink, target
		}
		if listed[name] != got {
			t.Errorf("on disk\n%+v, listed\n%+v", got, listed[name])
		}
		delete(listed, name)
	})
	if len(listed) > 0 {
		t.Errorf("listed but not on disk: %+v", listed)
	}
}

func walk(t testing.TB, dir string, visit func(name string, info fs.FileInfo)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err == nil {
			name, _ := filepath.Rel(dir, p)
			visit(name, info)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *sandbox) linksStayInside(t testing.TB) {
	t.Helper()
	home, err := filepath.EvalSymlinks(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	walk(t, s.dir, func(name string, info fs.FileInfo) {
		if info.Mode()&fs.ModeSymlink == 0 {
			return
		}
		real, err := filepath.EvalSymlinks(filepath.Join(s.dir, name))
		if err == nil && real != home && !strings.HasPrefix(real, home+"/") {
			t.Errorf("link %q leads outside, to %q", name, real)
		}
	})
}
