package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// meter samples the heap each time the extraction asks for more: at points of
// its work, not of time.
type meter struct {
	r    io.Reader
	peak uint64
	n    int
}

func (m *meter) Read(p []byte) (int, error) {
	if m.n++; m.n%16 == 0 {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		m.peak = max(m.peak, stats.HeapInuse)
	}
	return m.r.Read(p)
}

// writeArtifact writes a gzip'd tar archive of one file of noise.
func writeArtifact(w io.Writer, size int64) error {
	gz, err := gzip.NewWriterLevel(w, gzip.NoCompression)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(gz)
	if err := tw.WriteHeader(&tar.Header{Name: "images.bin", Typeflag: tar.TypeReg, Mode: 0o600, Size: size}); err != nil {
		return err
	}
	if _, err := io.CopyN(tw, rand.NewChaCha8([32]byte{2}), size); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return gz.Close()
}

// TestMemoryDoesNotGrowWithTheArtifact streams 200 MB that never exist in
// memory as a whole.
func TestMemoryDoesNotGrowWithTheArtifact(t *testing.T) {
	const size = 200 << 20
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := writeArtifact(pw, size)
		written <- err
		_ = pw.CloseWithError(err)
	}()
	runtime.GC()
	m := &meter{r: pr}
	sum, err := Extract(context.Background(), newSandbox(t).root, m, size, Limits{Bytes: size, Entries: 1, Depth: 1, Ratio: 1})
	_ = pr.Close()
	if werr := <-written; werr != nil || err != nil {
		t.Fatal(werr, err)
	}
	if sum.Bytes != size || m.n < 100 {
		t.Errorf("extracted %d bytes in %d reads, want %d", sum.Bytes, m.n, size)
	}
	t.Logf("peak heap %d KiB", m.peak>>10)
	if m.peak > 32<<20 {
		t.Errorf("peak heap %d bytes, want less than 32 MiB", m.peak)
	}
}

// TestMemoryOfNames: each of these names is a part of a header of 1 MiB, which
// must not stay in memory with it; packed, an archive of them is tiny.
func TestMemoryOfNames(t *testing.T) {
	a := new(archive)
	const entries = 40
	comment := strings.Repeat("c", 1<<20-200)
	var packed bytes.Buffer
	gz, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		a.Reset()
		a.pax("comment", comment, "path", fmt.Sprintf("file%d", i), "linkpath", fmt.Sprintf("target%d", i))
		a.raw("f", []byte{tar.TypeReg, tar.TypeSymlink}[i%2], "", nil)
		if _, err := gz.Write(a.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := gz.Write(make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	lim := testLimits
	lim.Entries = 1 << 16 // room for the headers themselves
	sum, err := newSandbox(t).extract(t, packed.Bytes(), lim)
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	t.Logf("%d bytes packed, heap %d KiB", packed.Len(), stats.HeapAlloc>>10)
	if len(sum.Files) != entries || stats.HeapAlloc > 10<<20 {
		t.Errorf("%d entries keep %d bytes alive", len(sum.Files), stats.HeapAlloc)
	}
	runtime.KeepAlive(sum)
}

func BenchmarkExtract(b *testing.B) {
	var one bytes.Buffer
	if err := writeArtifact(&one, 200<<20); err != nil {
		b.Fatal(err)
	}
	many := new(archive)
	for i := range 5000 {
		many.file(fmt.Sprintf("dir%d/file%d.yaml", i%50, i), noise(2000))
	}
	for name, packed := range map[string][]byte{"one-200MiB": one.Bytes(), "5000-small": many.tgz(b)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(packed)))
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s := newSandbox(b)
				b.StartTimer()
				lim := Limits{Bytes: 1 << 30, Entries: 50_000, Depth: 32, Ratio: 200}
				if _, err := Extract(context.Background(), s.root, bytes.NewReader(packed), int64(len(packed)), lim); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
