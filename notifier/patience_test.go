package notifier

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wneessen/go-mail/smtp"
)

func TestStopCutsTheConversation(t *testing.T) {
	reached := make(chan struct{})
	s := scripted(t, func(net.Conn, *bufio.Reader) { close(reached) })
	ctx, stop := context.WithCancel(t.Context())
	go func() { <-reached; stop() }()
	retry, err := sendOutcome(ctx, s, Transport{Timeout: time.Hour}, outcomes()["success"], admin)
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
	if _, err := sendOutcome(ctx, s, Transport{}, outcomes()["success"], admin); err != nil {
		t.Error(err)
	}
}

// A server that needs longer than notify.timeout to accept a mail, for example
// because it scans it, has taken it once: the next attempt would be a repeat.
func TestServerThatIsSlowToTakeTheMailIsWaitedFor(t *testing.T) {
	client, server := net.Pipe()
	conn := &deadlines{Conn: client}
	left := make(chan time.Duration, 1) // when the server had the whole mail
	go func() {
		defer server.Close()
		r := bufio.NewReader(server)
		take(server, r, func(l string) string {
			if l != "DATA" {
				return ""
			}
			fmt.Fprint(server, "354 go on\r\n")
			for l != ".\r\n" {
				var err error
				if l, err = r.ReadString('\n'); err != nil {
					return swallow
				}
			}
			left <- time.Until(conn.last())
			return "250 taken\r\n"
		})
	}()
	c, stop := conversationOver(t, conn)
	defer stop()
	var err error
	if c.client, err = smtp.NewClient(conn, "scripted"); err != nil {
		t.Fatal(err)
	}
	if err := c.transmit(&mail.Address{Address: "agent@example.com"}, admin, []byte("Subject: x\r\n\r\nx\r\n")); err != nil {
		t.Fatal(err)
	}
	if d := <-left; d < takingTime-time.Minute {
		t.Errorf("the server is given %s to take the mail", d)
	}
}

// A stop does not wait for such a server for long.
func TestStopWhileTheMailIsTakenShortensTheStep(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	conn := &deadlines{Conn: client}
	c, stop := conversationOver(t, conn)
	c.linger()
	stop()
	c.stepFor("wait", c.taking)
	if left := time.Until(conn.last()); left > lingerTime {
		t.Errorf("a stop waits %s for the server", left)
	}
}

// conversationOver returns a conversation over conn, and what ends its context.
func conversationOver(t *testing.T, conn net.Conn) (*conversation, context.CancelFunc) {
	ctx, stop := context.WithCancel(t.Context())
	tr := Transport{Timeout: time.Minute}
	c := &conversation{
		route: route{addr: "scripted:25"}, ctx: ctx, cancel: stop, conn: conn,
		timeout: tr.timeout(), taking: tr.takingTime(), stop: func() bool { return true },
	}
	t.Cleanup(c.close)
	return c, stop
}

// deadlines remembers the last deadline of a connection.
type deadlines struct {
	net.Conn
	mu sync.Mutex
	at time.Time
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
