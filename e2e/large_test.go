package e2e

import (
	"archive/tar"
	"compress/gzip"
	"crypto/rand"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

// writeLarge writes an artifact with one file of size random bytes, which no
// compression makes smaller.
func writeLarge(t *testing.T, name string, size int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewWriterLevel(f, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(gz)
	composeFile := compose("none")["docker-compose.yaml"]
	err = tw.WriteHeader(&tar.Header{Name: "docker-compose.yaml", Mode: 0o644, Size: int64(len(composeFile)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = io.WriteString(tw, composeFile)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := tw.WriteHeader(&tar.Header{Name: "image.bin", Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(tw, rand.Reader, size); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
}

// countingRelay passes connections on and counts what comes back.
type countingRelay struct {
	port  int
	bytes atomic.Int64
}

func newCountingRelay(t *testing.T, target string) *countingRelay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &countingRelay{port: l.Addr().(*net.TCPAddr).Port}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { r.pass(client, target) })
		}
	})
	t.Cleanup(func() { // the agent has been stopped, and with it its connections
		l.Close()
		all.Wait()
	})
	return r
}

func (r *countingRelay) pass(client net.Conn, target string) {
	defer client.Close()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(server, client)
		server.Close()
	}()
	io.Copy(io.MultiWriter(client, counter{&r.bytes}), server)
	client.Close()
	<-done
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
