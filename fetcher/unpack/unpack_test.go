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
	for name, want := range map[string]fs.FileMode{
		"conf": 0o755, "run.sh": 0o755, "dark": 0o601, "shut": 0o701, "implied": 0o750, "implied/deep": 0o755, "empty": 0o644,
	} {
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
