package smtp

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestStopCutsTheSession(t *testing.T) {
	reached := make(chan struct{})
	s := scripted(t, func(net.Conn, *bufio.Reader) { close(reached) })
	ctx, stop := context.WithCancel(t.Context())
	go func() { <-reached; stop() }()
	retry, err := sendMail(ctx, s, Transport{Timeout: time.Hour})
	if err == nil || !retry || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("retry %v, error %v", retry, err)
	}
}

// A mail the server is just taking is not cut: nobody would know whether it
// arrived.
func TestStopLetsAMailThatIsTakenArrive(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	s := scripted(t, func(c net.Conn, r *bufio.Reader) {
		take(c, r, func(l string) string {
			if l == "DATA" {
				stop()
			}
			return ""
		})
	})
	if _, err := sendMail(ctx, s, Transport{}); err != nil {
		t.Error(err)
	}
}

// A server that needs longer than notify.timeout to accept a mail, for example
// because it scans it, has taken it once: the next attempt would be a repeat.
func TestServerThatIsSlowToTakeTheMailIsWaitedFor(t *testing.T) {
	s := scripted(t, func(c net.Conn, r *bufio.Reader) { take(c, r, func(string) string { return "" }) })
	conn := &deadlines{}
	tr := Transport{Timeout: time.Minute, dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		var err error
		conn.Conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return conn, err
	}}
	if _, err := sendMail(t.Context(), s, tr); err != nil {
		t.Fatal(err)
	}
	if conn.accept < acceptTimeout-time.Minute {
		t.Errorf("the server is given %s to take the mail", conn.accept)
	}
}

// A stop does not wait for such a server for long.
func TestStopWhileTheMailIsTakenShortensTheStep(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	conn := &deadlines{Conn: client}
	ctx, stop := context.WithCancel(t.Context())
	s := &session{
		Conn: conn, ctx: ctx, cancel: stop, timeout: time.Minute, acceptTimeout: acceptTimeout, unread: maxReplies,
	}
	s.stop = context.AfterFunc(ctx, s.interrupt)
	defer s.close()
	s.enter(stepData)
	stop()
	s.enter(stepAccept)
	if left := time.Until(conn.last()); left > stopGrace {
		t.Errorf("a stop waits %s for the server", left)
	}
}

// deadlines remembers the last deadline of a connection.
type deadlines struct {
	net.Conn
	accept time.Duration // what was left of the deadline when the answer to the mail was awaited

	mu sync.Mutex
	at time.Time
}

// Read looks for the answer of take to a mail.
func (d *deadlines) Read(p []byte) (int, error) {
	left := time.Until(d.last())
	n, err := d.Conn.Read(p)
	if bytes.Contains(p[:n], []byte("250 taken")) {
		d.accept = left
	}
	return n, err
}

func (d *deadlines) SetDeadline(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	return d.Conn.SetDeadline(t)
}

func (d *deadlines) last() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}
