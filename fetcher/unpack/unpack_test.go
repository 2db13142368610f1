package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

// noise returns n bytes that do not compress, the same ones each time.
func noise(n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return string(b)
}

func TestExtract(t *testing.T) {
	old := syscall.Umask(0o077) // modes must not depend on it
	defer syscall.Umask(old)
	big := noise(3*bufferSize + 17)
	a := new(archive)
	a.header(tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "v1"}}, "")
	a.dir("./").dir("./conf/").file("./conf/nginx.conf", "worker_processes 1;")
	a.header(tar.Header{Name: "./run.sh", Mode: 0o6755}, "#!/bin/sh")
	a.header(tar.Header{Name: "dark", Mode: 0o1}, "owner may always read")
	a.header(tar.Header{Name: "shut", Typeflag: tar.TypeDir, Mode: 0o1001}, "")
	a.file("shut/in", "x").file("implied/deep/f", "y").file("empty", "").file("big", big)
	a.header(tar.Header{Name: "implied/", Typeflag: tar.TypeDir, Mode: 0o750}, "").dir("./conf")
	a.file("späte/Größe 你好.txt", "utf-8").file(strings.Repeat("l", 200)+"/"+strings.Repeat("m", 255), "long")
	a.link("hard", "./conf/nginx.conf").symlink("implied/link", "../conf/nginx.conf").symlink("implied/deep/top", "../..")
	a.symlink("self", "self").symlink("dangling", "./not/here")
	s := newSandbox(t)
	sum, err := s.extract(t, a.tgz(t), testLimits)
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]fs.FileMode{}
	for _, f := range sum.Files {
		modes[f.Path] = f.Mode
	}
	want := map[string]fs.FileMode{
		"conf": 0o755, "run.sh": 0o755, "dark": 0o601, "shut": 0o701, "implied": 0o750, "implied/deep": 0o755, "empty": 0o644,
	}
	if os.Geteuid() == 0 { // who may read everything
		want["dark"], want["shut"] = 0o001, 0o001
	}
	for name, want := range want {
		if modes[name] != want {
			t.Errorf("%s has mode %04o, want %04o", name, modes[name], want)
		}
	}
	if want := int64(len(big) + 19 + 9 + 21 + 1 + 1 + 5 + 4); sum.Bytes != want {
		t.Errorf("%d bytes written, want %d", sum.Bytes, want)
	}
	for name, want := range map[string]string{"big": big, "hard": "worker_processes 1;", "implied/link": "worker_processes 1;"} {
		if got, err := os.ReadFile(filepath.Join(s.dir, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %.40q, %v", name, got, err)
		}
	}
}

// TestOwners: root gives every entry to whom the archive says, as tar does, but
// nothing that would let somebody act as another user.
func TestOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	a := new(archive)
	a.header(tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o775, Uid: 21, Gid: 22}, "")
	a.header(tar.Header{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o2770, Uid: 999, Gid: 998}, "")
	a.header(tar.Header{Name: "data/key", Mode: 0o400, Uid: 1000, Gid: 1001}, "secret")
	a.header(tar.Header{Name: "su", Mode: 0o6755, Uid: 0, Gid: 1001}, "program")
	a.header(tar.Header{Name: "link", Linkname: "su", Typeflag: tar.TypeSymlink, Uid: 7, Gid: 8}, "")
	a.header(tar.Header{Name: "late/f", Uid: 12, Gid: 13}, "x")
	a.header(tar.Header{Name: "late/", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 14, Gid: 15}, "")
	a.header(tar.Header{Name: "named", Uid: 16, Gid: 17, Uname: "root", Gname: "root"}, "by number")
	a.header(tar.Header{Name: "huge", Uid: 1 << 33, Gid: 1}, "beyond what the kernel knows")
	a.link("hard", "data/key")
	s := newSandbox(t)
	sum, err := s.extract(t, a.tgz(t), testLimits)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"data": "dir 0770 999 998", "data/key": "file 0400 1000 1001", "hard": "file 0400 1000 1001",
		"su": "file 0755 0 1001", "link": "symlink 0000 7 8", "late": "dir 0711 14 15", "late/f": "file 0644 12 13",
		"named": "file 0644 16 17", "huge": "file 0644 0 0",
	}
	for _, f := range sum.Files { // which is what lies on the disk
		if got := fmt.Sprintf("%s %04o %d %d", f.Type, f.Mode, f.UID, f.GID); got != want[f.Path] {
			t.Errorf("%s is %s, want %s", f.Path, got, want[f.Path])
		}
		delete(want, f.Path)
	}
	info, err := os.Stat(s.dir)
	if r := sum.Root; err != nil || info.Mode().Perm() != 0o775 || info.Sys().(*syscall.Stat_t).Uid != 21 || r.Mode != 0o775 || r.UID != 21 || r.GID != 22 {
		t.Errorf("the directory itself is %v, %v, listed as %+v", info.Mode(), err, r)
	}
	if len(want) != 0 {
		t.Errorf("not listed: %v", want)
	}
}

// TestOwnersThatCannotBe: who may not give files away extracts as an ordinary user.
func TestOwnersThatCannotBe(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EINVAL} {
		x := &extraction{owners: true}
		a, err := x.give(attributes{12345, 12345, 0o040}, 0o600, func(int, int) error { return &fs.PathError{Err: errno} })
		if err != nil || a != own(0o640) {
			t.Errorf("%v: %+v, %v", errno, a, err)
		}
	}
	x := &extraction{owners: true}
	if _, err := x.give(attributes{12345, 12345, 0o040}, 0o600, func(int, int) error { return syscall.EIO }); !errors.Is(err, syscall.EIO) {
		t.Errorf("an error of the disk: %v", err)
	}
}

func TestExtractAtTheLimits(t *testing.T) {
	a := files(new(archive), 10, "1/2/f%d")
	lim := Limits{Bytes: 100, Entries: 12, Depth: 3, Ratio: 1}
	if _, err := newSandbox(t).extract(t, a.tgz(t), lim); err != nil {
		t.Errorf("exactly at its limits: %v", err)
	}
	// An archive that expands far, but not to much.
	zeros := new(archive).file("zeros", strings.Repeat("\x00", ratioFrom))
	if _, err := newSandbox(t).extract(t, zeros.tgz(t), testLimits); err != nil {
		t.Errorf("a small archive of repetitive text: %v", err)
	}
	if _, err := Extract(context.Background(), newSandbox(t).root, strings.NewReader(""), 0, Limits{}); err == nil || errors.As(err, new(*Refusal)) {
		t.Errorf("without limits: %v, want a plain error", err)
	}
}

// TestExtractLikeTar extracts what tar does without a word, and is not said of
// every archive.
func TestExtractLikeTar(t *testing.T) {
	fresh := func() *archive { return new(archive).file("conf/a", "one").dir("shared").dir("app/conf") }
	padded := func(n int) []byte {
		packed := fresh().file("x", "").tgz(t)
		return append(packed, make([]byte, n)...)
	}
	for name, tt := range map[string]struct {
		packed []byte
		path   string // an entry, and
		want   string // its content or target
	}{
		"one zero":                        {padded(1), "conf/a", "one"},
		"zeros to a block of bsdtar":      {padded(10240 - len(padded(0))), "conf/a", "one"},
		"zeros beyond any buffer":         {padded(1 << 20), "conf/a", "one"},
		"member of nothing":               {append(fresh().tgz(t), gzipped(t, nil)...), "conf/a", "one"},
		"members, and zeros":              {append(append(gzipped(t, fresh().Bytes()), gzipped(t, make([]byte, 1024))...), 0, 0), "conf/a", "one"},
		"link that goes down and up":      {fresh().symlink("l", "conf/../conf/a").tgz(t), "l", "conf/../conf/a"},
		"such a link before its target":   {new(archive).symlink("l", "conf/../conf/a").file("conf/a", "one").tgz(t), "l", "conf/../conf/a"},
		"such a link to nothing":          {fresh().symlink("l", "gone/../conf/b").tgz(t), "l", "gone/../conf/b"},
		"link beside":                     {fresh().symlink("app/l", "../shared/x").tgz(t), "app/l", "../shared/x"},
		"link up, down and up":            {fresh().symlink("app/conf/l", "../../shared/../conf/a").tgz(t), "app/conf/l", "../../shared/../conf/a"},
		"link through a link":             {fresh().symlink("s", "app/conf").symlink("l", "s/../../conf/a").tgz(t), "l", "s/../../conf/a"},
		"link to the root":                {fresh().symlink("app/conf/l", "../x/../..").tgz(t), "app/conf/l", "../x/../.."},
		"hard link to a link":             {fresh().symlink("l", "conf/a").link("h", "l").tgz(t), "h", "conf/a"},
		"label (tar -V)":                  {new(archive).raw("release 1", typeVolumeLabel, "", nil).file("conf/a", "one").tgz(t), "conf/a", "one"},
		"incremental (tar -g)":            {new(archive).raw("conf/", typeDumpDir, "Ya\x00\x00", nil).file("conf/a", "one").tgz(t), "conf/a", "one"},
		"contiguous file":                 {new(archive).raw("c", tar.TypeCont, "two", nil).tgz(t), "c", "two"},
		"extended attributes and headers": {new(archive).pax("LIBARCHIVE.xattr.com.apple.provenance", "AQ", "mtime", "1.5", "SCHILY.xattr.user.x", "y").raw("c", tar.TypeReg, "two", nil).tgz(t), "c", "two"},
		"AppleDouble files":               {fresh().file("._conf", "\x00\x05\x16\x07").file("conf/._a", "\x00\x05\x16\x07").tgz(t), "conf/a", "one"},
		"names that differ by case":       {fresh().file("conf/A", "two").tgz(t), "conf/A", "two"},
		"name of symbols":                 {fresh().file("docs/❤️ – naïve.md", "two").tgz(t), "docs/❤️ – naïve.md", "two"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			if _, err := s.extract(t, tt.packed, testLimits); err != nil {
				t.Fatal(err)
			}
			full := filepath.Join(s.dir, tt.path)
			got, err := os.Readlink(full)
			if err != nil {
				content, _ := os.ReadFile(full)
				got = string(content)
			}
			if got != tt.want {
				t.Errorf("%s is %q, want %q", tt.path, got, tt.want)
			}
		})
	}
}

// TestWhatItIs: who stored something else than a tar.gz is told what it is.
func TestWhatItIs(t *testing.T) {
	tarball := new(archive).file("ok", "fine").padding(1024).Bytes()
	for _, tt := range []struct{ content, what string }{
		{"", "artifact is empty, and not a gzip'd tar archive: store a tar.gz"},
		{"PK\x03\x04" + noise(2000), "artifact is a zip archive, not a gzip'd tar archive: store a tar.gz of the release (tar -czf"},
		{string(tarball), tarData},
		{new(archive).raw("v7", 0, "x", func(b []byte) { copy(b[257:], make([]byte, 8)) }).padding(1024).String(), tarData},
		{"\xfd7zXZ\x00" + noise(100), "is xz,"},
		{"\x28\xb5\x2f\xfd" + noise(100), "is zstd,"},
		{"BZh91AY&SY" + noise(100), "is bzip2,"},
		{"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"},
		{"\n<!DOCTYPE html>\n<html>", "an HTML page"},
		{"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"},
		{`{"message":"Not Found"}` + "\n", "JSON"},
		{"# release\nservices:\n  app:\n    image: app\n", "a Compose file"},
		{"\ufeffversion: '3'\nservices:\n", "a Compose file"},
		{"apiVersion: v2\nname: app\n", "YAML for Kubernetes or Helm"},
		{"---\na: b\n", "YAML"},
		{"Größe\n", "plain text"},
		{strings.Repeat("ä", HeadSize), "plain text"},
		{"H4sIAAAAAAAAA+3" + strings.Repeat("A", 100), "base64 text of gzip"},
		{"\\x1f8b0800", "hexadecimal text of gzip, as PostgreSQL"},
		{"\xff\xfes\x00", "UTF-16 text"},
		{string(noise(3000)), "is not a gzip'd tar archive, and nothing else that is known here"},
		{"\x1f\x8b\x07" + noise(100), "is damaged: its gzip header"},
	} {
		for packed, want := range map[string]string{
			tt.content:                             tt.what,
			string(gzipped(t, []byte(tt.content))): "inside of the gzip is",
		} {
			switch {
			case packed == tt.content:
			case tt.content == "" || tt.what == tarData:
				continue
			case strings.HasPrefix(tt.content, "\x1f\x8b"):
				want = "it was compressed twice"
			}
			_, err := newSandbox(t).extract(t, []byte(packed), testLimits)
			if !errors.As(err, new(*Refusal)) || !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("%.30q: got %v, want it to say %q", packed, err, want)
			}
		}
	}
}

func TestMultiMemberGzip(t *testing.T) {
	tarball := new(archive).file("a", noise(100)).file("b", "x").padding(1024).Bytes()
	packed := append(gzipped(t, tarball[:700]), gzipped(t, tarball[700:])...)
	sum, err := newSandbox(t).extract(t, packed, testLimits)
	if err != nil || len(sum.Files) != 2 {
		t.Errorf("got %+v, %v", sum.Files, err)
	}
	broken := append(gzipped(t, tarball[:700]), gzipped(t, tarball[700:])...)
	broken[len(broken)-8] ^= 1
	if _, err := newSandbox(t).extract(t, broken, testLimits); !errors.As(err, new(*Refusal)) {
		t.Errorf("wrong checksum of the second member: %v", err)
	}
}

// TestArchivesOfTar reads what the tar program writes in its formats.
func TestArchivesOfTar(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	source := t.TempDir()
	long := strings.Repeat("long-directory-name/", 7)
	for name, content := range map[string]string{
		"chart/Chart.yaml": "name: wrktalk", "chart/templates/a.yaml": noise(5000), "empty": "",
		"ünïcode/文件": "x", long + strings.Repeat("f", 120): "long", long + "short": "y",
	} {
		full := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Chmod(filepath.Join(source, "empty"), 0o755), os.Mkdir(filepath.Join(source, "void"), 0o700),
		os.Link(filepath.Join(source, "empty"), filepath.Join(source, "hard")), os.Symlink("../chart/Chart.yaml", filepath.Join(source, "void/link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"gnu", "pax", "oldgnu"} {
		for _, member := range []string{".", "chart empty hard void ünïcode long-directory-name"} {
			t.Run(format+" "+member, func(t *testing.T) {
				args := append([]string{"-cz", "--format=" + format, "-C", source}, strings.Fields(member)...)
				packed, err := exec.Command("tar", args...).Output()
				if err != nil {
					t.Fatal(err)
				}
				s := newSandbox(t)
				if _, err := s.extract(t, packed, Limits{Bytes: 1 << 20, Entries: 100, Depth: 16, Ratio: 100}); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command("diff", "-r", "--no-dereference", source, s.dir).CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
				walk(t, source, func(name string, info fs.FileInfo) {
					if got, err := os.Lstat(filepath.Join(s.dir, name)); err != nil || got.Mode() != info.Mode() {
						t.Errorf("%s: mode %v, want %v (%v)", name, got.Mode(), info.Mode(), err)
					}
				})
			})
		}
	}
}

// TestSourceErrors: what the database says is neither the artifact's fault nor
// this host's, wherever in the stream it happens.
func TestSourceErrors(t *testing.T) {
	packed := new(archive).file("a", noise(200<<10)).file("b", noise(100)).tgz(t)
	for _, cause := range []error{errors.New("connection reset"), io.ErrUnexpectedEOF, fmt.Errorf("slice 3: %w", io.EOF)} {
		for _, at := range []int{0, 5, 100, 70 << 10, len(packed) - 4, len(packed)} {
			r := io.MultiReader(bytes.NewReader(packed[:at]), iotest.ErrReader(cause))
			sum, err := Extract(context.Background(), newSandbox(t).root, r, int64(len(packed)), testLimits)
			var source *SourceError
			if !errors.Is(err, cause) || !errors.As(err, &source) || errors.As(err, new(*Refusal)) {
				t.Errorf("%v after %d bytes: got %v", cause, at, err)
			}
			if sum.SHA256 != "" || sum.Files != nil {
				t.Errorf("%v after %d bytes: got a digest or files", cause, at)
			}
		}
	}
	// A refusal does not count when the rest could not be read: the digest may
	// be the better explanation.
	bad := new(archive).file("../x", "x").file("b", noise(200<<10)).tgz(t)
	cause := errors.New("connection reset")
	r := io.MultiReader(bytes.NewReader(bad[:100<<10]), iotest.ErrReader(cause))
	if _, err := Extract(context.Background(), newSandbox(t).root, r, int64(len(bad)), testLimits); !errors.Is(err, cause) {
		t.Errorf("failure after a refusal: %v", err)
	}
}

func TestSmallReads(t *testing.T) {
	packed := new(archive).file("a", noise(1000)).tgz(t)
	sum, err := Extract(context.Background(), newSandbox(t).root, iotest.DataErrReader(iotest.OneByteReader(bytes.NewReader(packed))), int64(len(packed)), testLimits)
	if err != nil || len(sum.Files) != 1 || sum.Packed != int64(len(packed)) {
		t.Errorf("got %+v, %v", sum, err)
	}
}

// stopReader cancels when it is read for the n-th time, and fails with err then.
type stopReader struct {
	io.Reader
	n    int
	stop func()
	err  error
}

func (r *stopReader) Read(p []byte) (int, error) {
	if r.n--; r.n == 0 {
		r.stop()
		if r.err != nil {
			return 0, r.err
		}
	}
	return r.Reader.Read(p)
}

func TestCancel(t *testing.T) {
	packed := new(archive).file("a", noise(600<<10)).tgz(t)
	cause := errors.New("shutting down")
	for n := 1; n < 8; n++ {
		// A query that its context ended has an error of its own to tell.
		for _, rerr := range []error{nil, errors.New("query cancelled")} {
			ctx, cancel := context.WithCancelCause(context.Background())
			r := &stopReader{bytes.NewReader(packed), n, func() { cancel(cause) }, rerr}
			_, err := Extract(ctx, newSandbox(t).root, r, int64(len(packed)), testLimits)
			if !errors.Is(err, cause) || errors.As(err, new(*Refusal)) || errors.As(err, new(*SourceError)) {
				t.Errorf("cancelled at read %d, reader says %v: got %v", n, rerr, err)
			}
		}
	}
}

// TestHostErrors: what is in the way belongs to somebody else, and stays.
func TestHostErrors(t *testing.T) {
	for _, a := range []*archive{new(archive).file("there", "x"), new(archive).dir("there"), new(archive).symlink("there", "x"), new(archive).file("there/f", "x")} {
		s := newSandbox(t)
		if err := os.WriteFile(filepath.Join(s.dir, "there"), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		packed := a.tgz(t)
		_, err := Extract(context.Background(), s.root, bytes.NewReader(packed), int64(len(packed)), testLimits)
		if !errors.Is(err, fs.ErrExist) || errors.As(err, new(*Refusal)) {
			t.Errorf("got %v, want a plain error that the name exists", err)
		}
		if got, _ := os.ReadFile(filepath.Join(s.dir, "there")); string(got) != "mine" {
			t.Errorf("what was there became %q", got)
		}
	}
}
