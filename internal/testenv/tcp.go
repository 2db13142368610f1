package testenv

import (
	"bufio"
	"net"
	"sync"
	"testing"
)

// ServeTCP starts a server on the loopback address that does what serve does
// with each client, and returns its port. Its connections are closed when the
// test ends; it waits until every serve has returned.
func ServeTCP(t testing.TB, serve func(net.Conn, *bufio.Reader)) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns []net.Conn
	)
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() { serve(c, bufio.NewReader(c)) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}
