package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Proxy passes TCP connections on to a server, and fails them on request. It
// sees what is sent only where the connection is not encrypted.
type Proxy struct {
	Host string
	Port int

	target   string
	listener net.Listener
	group    sync.WaitGroup

	mu       sync.Mutex
	open     map[net.Conn]bool // both ends of every connection
	refuse   bool
	frozen   chan struct{} // not nil while frozen; closed on thaw
	match    []byte        // the request whose reply is to be lost
	lose     int           // how many more
	lost     int
	cutAfter int64 // bytes from the server until a cut; negative is never
	total    int   // connections accepted and passed on
}

// startProxy listens on a loopback port for connections to target.
func startProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	p := &Proxy{
		Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port,
		target: target, listener: l, open: map[net.Conn]bool{}, cutAfter: -1,
	}
	p.group.Go(p.accept)
	return p, nil
}

// NewProxy starts a proxy for the length of a test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	p, err := startProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// NewPostgresProxy starts a proxy in front of db's server for the length of a
// test and returns it with a connection string that leads through it.
func NewPostgresProxy(t testing.TB, db *DB) (*Proxy, string) {
	t.Helper()
	p := NewProxy(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(db.Server.Port)))
	return p, db.Server.ConnString(db.Name, p.Host, p.Port)
}

// Addr returns the address to connect to.
func (p *Proxy) Addr() string { return net.JoinHostPort(p.Host, strconv.Itoa(p.Port)) }

// Close ends every connection and the proxy, and waits for both.
func (p *Proxy) Close() {
	p.listener.Close()
	p.Thaw()
	p.Refuse(true)
	p.group.Wait()
}

// Cut ends all connections that are open now. New ones are welcome.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

func (p *Proxy) cut() {
	for c := range p.open {
		c.Close()
	}
}

// CutAfter cuts all connections once, after n more bytes came from the server.
func (p *Proxy) CutAfter(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAfter = n
}

// Refuse cuts all connections, and resets every new one at once until Refuse
// is called with false.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = on
	if on {
		p.cut()
	}
}

// Freeze lets connections stand, but passes nothing on in either direction
// until Thaw: a network that fell silent.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen == nil {
		p.frozen = make(chan struct{})
	}
}

// Thaw ends Freeze.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		close(p.frozen)
		p.frozen = nil
	}
}

// LoseReplyTo loses the server's reply to the next n requests that contain
// request: the server carries it out and answers, and then the connection is
// cut without a word to the client.
func (p *Proxy) LoseReplyTo(request string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.match, p.lose = []byte(request), n
}

// Lost returns how many replies were lost so far.
func (p *Proxy) Lost() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// Connections returns how many connections were passed on so far.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		p.group.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.target)
	if err == nil {
		defer server.Close()
	}
	p.mu.Lock()
	if p.refuse || err != nil {
		p.mu.Unlock()
		_ = client.(*net.TCPConn).SetLinger(0) // a reset, as from a closed port
		return
	}
	p.open[client], p.open[server] = true, true
	p.total++
	p.mu.Unlock()

	l := &link{proxy: p, client: client, server: server}
	var both sync.WaitGroup
	both.Go(func() { l.pass(server, client, l.request) })
	both.Go(func() { l.pass(client, server, l.reply) })
	both.Wait()

	p.mu.Lock()
	delete(p.open, client)
	delete(p.open, server)
	p.mu.Unlock()
}

// link is one connection through the proxy.
type link struct {
	proxy          *Proxy
	client, server net.Conn
	losing         bool // guarded by proxy.mu
}

// pass copies until either side ends; look sees each piece first and says
// whether it may pass.
func (l *link) pass(to io.Writer, from io.Reader, look func([]byte) bool) {
	defer l.client.Close()
	defer l.server.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			l.proxy.waitThaw()
			if !look(buf[:n]) {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) waitThaw() {
	p.mu.Lock()
	frozen := p.frozen
	p.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
}

func (l *link) request(piece []byte) bool {
	p := l.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lose > 0 && bytes.Contains(piece, p.match) {
		p.lose--
		l.losing = true
	}
	return true
}

func (l *link) reply(piece []byte) bool {
	p := l.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.losing {
		p.lost++
		return false
	}
	if p.cutAfter >= 0 {
		if p.cutAfter -= int64(len(piece)); p.cutAfter <= 0 {
			p.cutAfter = -1
			p.cut()
			return false
		}
	}
	return true
}
