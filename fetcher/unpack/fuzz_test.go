package unpack

import (
	"archive/tar"
	"errors"
	"testing"
)

// FuzzExtract feeds tar streams, so that the fuzzer need not learn to compute
// gzip's checksum. Whatever comes: nothing outside changes, the list is what
// lies on the disk, links stay inside (all of which extract checks), and every
// failure is the archive's fault.
func FuzzExtract(f *testing.F) {
	f.Add([]byte{})
	f.Add(new(archive).dir("d").file("d/f", "content").symlink("d/l", "../d/f").link("h", "d/f").padding(1024).Bytes())
	f.Add(new(archive).pax("path", "long/name", "mtime", "1.5").raw("n", tar.TypeReg, "x", nil).padding(1024).Bytes())
	f.Add(new(archive).dir("d").symlink("l", "d").file("l/f", "x").padding(1024).Bytes())
	f.Add(new(archive).file("../victim", "x").padding(1024).Bytes())
	f.Add(new(archive).symlink("d/l", "../../victim").padding(1024).Bytes())
	f.Add(new(archive).symlink("out", "d/up/../x").dir("d/e").symlink("d/up", "../d/e").link("h", "d/up").padding(1024).Bytes())
	f.Add(new(archive).raw("s", tar.TypeGNUSparse, "", gnuSparse(1<<30, 0)).padding(1024).Bytes())
	f.Add(new(archive).pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "9").raw("s", tar.TypeReg, "0\n", nil).padding(1024).Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		_, err := newSandbox(t).extract(t, gzipped(t, stream), Limits{Bytes: 1 << 20, Entries: 64, Depth: 8, Ratio: 100})
		if err != nil && !errors.As(err, new(*Refusal)) {
			t.Errorf("got %v, want nothing but refusals", err)
		}
	})
}

// FuzzArtifact feeds what lies in the database, whatever that is.
func FuzzArtifact(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x1f\x8b\x08"))
	f.Add(gzipped(f, new(archive).file("f", "x").padding(1024).Bytes()))
	f.Add(append(gzipped(f, new(archive).file("f", "x").Bytes()), gzipped(f, make([]byte, 1024))...))
	f.Add([]byte("services: {web: {image: x}}\n"))
	f.Add([]byte("PK\x03\x04 BZh9 \xfd7zXZ\x00 \x28\xb5\x2f\xfd"))
	f.Fuzz(func(t *testing.T, packed []byte) {
		_, err := newSandbox(t).extract(t, packed, Limits{Bytes: 1 << 20, Entries: 64, Depth: 8, Ratio: 100})
		if err != nil && !errors.As(err, new(*Refusal)) {
			t.Errorf("got %v, want nothing but refusals", err)
		}
	})
}
