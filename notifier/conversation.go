package notifier

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/wneessen/go-mail/smtp"
)

// conversation is an open connection to a mail server. One goroutine owns it.
type conversation struct {
	route
	ctx            context.Context
	timeout        time.Duration // of a step
	taking         time.Duration // of the answer to a whole mail
	user, password string        // for errors: to leave them out
	conn           net.Conn      // the raw one: deadlines and the end of everything
	client         *smtp.Client
	action         string        // the step that is being taken, for errors
	patience       time.Duration // with it
	lingers        bool          // the end of ctx shortens the step and does not cut it
	stop           func() bool   // forgets what the end of ctx would do to conn
	cancel         context.CancelFunc
}

// open connects, encrypts and logs in. The caller closes the conversation.
func (t Transport) open(ctx context.Context, s Settings) (*conversation, error) {
	r, err := t.route(s)
	if err != nil {
		return nil, err
	}
	c := &conversation{route: r, timeout: t.timeout(), taking: t.takingTime(), user: s.User, password: s.Password}
	c.ctx, c.cancel = context.WithTimeout(ctx, c.limit())
	if err := c.begin(t, s); err != nil {
		err = c.explain(err)
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conversation) begin(t Transport, s Settings) error {
	c.step("connect to " + c.addr)
	conf, err := t.tlsConfig(c.host)
	if err != nil {
		return err
	}
	dialer := net.Dialer{Timeout: c.timeout}
	raw, err := dialer.DialContext(c.ctx, "tcp", c.addr)
	if err != nil {
		return err
	}
	c.conn = &boundedConn{Conn: raw, left: maxReplies}
	c.stop = context.AfterFunc(c.ctx, func() { _ = raw.Close() })

	speaking := c.conn
	if c.mode == TLSImplicit {
		c.step("start TLS with " + c.addr)
		encrypted := tls.Client(c.conn, conf)
		if err := encrypted.HandshakeContext(c.ctx); err != nil {
			return err
		}
		speaking = encrypted
	}
	c.step("wait for the greeting of " + c.addr)
	if c.client, err = smtp.NewClient(speaking, c.host); err != nil {
		return err
	}
	c.step("introduce ourselves to " + c.addr)
	if err := c.client.Hello(helo(t.Helo)); err != nil {
		return err
	}
	encrypted := c.mode == TLSImplicit
	if offered, _ := c.client.Extension("STARTTLS"); !encrypted && c.mode != TLSNone {
		switch {
		case offered:
			c.step("start TLS with " + c.addr)
			if err := c.client.StartTLS(conf); err != nil {
				return err
			}
			encrypted = true
		case c.mode == TLSStartTLS:
			c.step("start TLS with " + c.addr)
			return errNoSTARTTLS
		}
	}
	if !encrypted && !local(raw.RemoteAddr()) {
		return errNotLocal
	}
	return c.login(s)
}

// local reports whether a connection to a really stays on this host: a name
// like localhost can be made to lead elsewhere.
func local(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// login authenticates if a user is set. Over a verified connection, and to
// this host, PLAIN is the mechanism that works wherever the password is right;
// servers offer the challenge mechanisms even for users who have none.
func (c *conversation) login(s Settings) error {
	if s.User == "" {
		return nil
	}
	c.step("log in to " + c.addr)
	ok, offered := c.client.Extension("AUTH")
	if !ok {
		return errNoLogin
	}
	const inClear = true // what is not encrypted was refused unless it is local
	for _, mech := range []struct {
		name string
		auth func() smtp.Auth
	}{
		{"PLAIN", func() smtp.Auth { return smtp.PlainAuth("", s.User, s.Password, c.host, inClear) }},
		{"LOGIN", func() smtp.Auth { return smtp.LoginAuth(s.User, s.Password, c.host, inClear) }},
		{"SCRAM-SHA-256", func() smtp.Auth { return smtp.ScramSHA256Auth(s.User, s.Password) }},
		{"SCRAM-SHA-1", func() smtp.Auth { return smtp.ScramSHA1Auth(s.User, s.Password) }},
		{"CRAM-MD5", func() smtp.Auth { return smtp.CRAMMD5Auth(s.User, s.Password) }},
	} {
		for m := range strings.FieldsSeq(offered) {
			if strings.EqualFold(m, mech.name) {
				return c.client.Auth(mech.auth())
			}
		}
	}
	return fmt.Errorf("%w: it offers %s", errNoMechanism, word(offered, "none"))
}

// limit is how long the whole may take, whatever the server drips.
func (c *conversation) limit() time.Duration { return maxSteps*c.timeout + c.taking }

// step names what is done next and gives it its time.
func (c *conversation) step(action string) { c.stepFor(action, c.timeout) }

func (c *conversation) stepFor(action string, patience time.Duration) {
	c.action, c.patience = action, patience
	if c.conn == nil {
		return
	}
	_ = c.conn.SetDeadline(time.Now().Add(patience)) // fails on a closed connection, as the step will
	if c.lingers && c.ctx.Err() != nil {
		c.hurry() // it ended before this step, or while the deadline was set
	}
}

// linger lets what was begun go on for a moment when ctx ends, instead of
// cutting it: a mail whose acceptance is not heard of is sent twice.
func (c *conversation) linger() {
	if c.stop() {
		c.lingers = true
		c.stop = context.AfterFunc(c.ctx, c.hurry)
	}
}

func (c *conversation) hurry() { _ = c.conn.SetDeadline(time.Now().Add(lingerTime)) }

// close ends the conversation without ceremony.
func (c *conversation) close() {
	if c.stop != nil {
		c.stop()
	}
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.cancel()
}

// quit says goodbye. What the server answers changes nothing any more.
func (c *conversation) quit() {
	if c.ctx.Err() != nil {
		return
	}
	c.step("say goodbye to " + c.addr)
	_ = c.client.Quit()
}

// boundedConn fails reads beyond its allowance.
type boundedConn struct {
	net.Conn
	left int // bytes
}

// Read reads what is left of the allowance.
func (b *boundedConn) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooTalkative
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
