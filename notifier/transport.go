package notifier

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail/smtp"
)

// Settings say through which server mail goes. They are read from
// deployment_config at each send.
type Settings struct {
	Host     string // "" means that mail is not configured
	Port     int    // 0 means 587, or 465 with implicit TLS
	User     string // "" means no login
	Password string
	From     string // an address, or "Name <address>"; "" means User when that is one
}

// Configured reports whether there is a server to send through.
func (s Settings) Configured() bool { return strings.TrimSpace(s.Host) != "" }

// String shows the settings without the password.
func (s Settings) String() string {
	return fmt.Sprintf("%s port %d, login %q, from %q", s.Host, s.Port, s.User, s.From)
}

// GoString is String: %#v must not show the password either.
func (s Settings) GoString() string { return s.String() }

// sender returns the address mail comes from.
func (s Settings) sender() (*mail.Address, error) {
	from, column := s.From, "smtp_from"
	if strings.TrimSpace(from) == "" {
		from, column = s.User, "smtp_user"
	}
	if strings.TrimSpace(from) == "" {
		return nil, &sendError{
			action: "find the sender's address", reason: "smtp_from is empty",
			advice: "set smtp_from in deployment_config", retry: true,
		}
	}
	a, err := parseAddress(from)
	if err != nil {
		return nil, &sendError{
			action: "find the sender's address", reason: fmt.Sprintf("%s is %q, which is not a mail address", column, word(from, "")),
			advice: "set smtp_from in deployment_config", err: err, retry: true,
		}
	}
	return a, nil
}

// parseAddress reads an address, with a name or without. The result holds no
// character that could break a header or an SMTP command.
func parseAddress(s string) (*mail.Address, error) {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || isBreak(r) }) {
		return nil, errors.New("it contains control characters")
	}
	a, err := mail.ParseAddress(s)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "mail: "))
	}
	a.Name = line(a.Name)
	return a, nil
}

// TLSMode says how a connection to the mail server is encrypted.
type TLSMode string

// The ways to encrypt. None is for servers on this host alone: nothing is ever
// sent in the clear to another one.
const (
	// TLSAuto is implicit TLS on port 465; STARTTLS everywhere else, which only
	// a server on the loopback address may lack.
	TLSAuto     TLSMode = "auto"
	TLSStartTLS TLSMode = "starttls"
	TLSImplicit TLSMode = "implicit"
	TLSNone     TLSMode = "none"
)

// Transport is how the agent talks to mail servers.
type Transport struct {
	TLS    TLSMode // "" is auto
	CAFile string  // PEM file of authorities to trust besides the system's; "" for none
	Helo   string  // how the agent introduces itself; "" is the host's name
	// Timeout bounds each step of the conversation; 0 is 30 seconds. A whole
	// mail takes at most ten of them.
	Timeout time.Duration
}

const (
	defaultTimeout = 30 * time.Second
	maxSteps       = 10
	lingerTime     = 3 * time.Second
	// maxReplies bounds what a server may say in one conversation, so that one
	// that never stops talking cannot fill the memory.
	maxReplies = 1 << 20 // bytes
)

func (t Transport) timeout() time.Duration {
	if t.Timeout <= 0 {
		return defaultTimeout
	}
	return t.Timeout
}

// route is what settings and transport come to together.
type route struct {
	host, addr string
	mode       TLSMode // auto is STARTTLS if offered: on the loopback address alone
}

func (t Transport) route(s Settings) (route, error) {
	r := route{host: strings.Trim(strings.TrimSpace(s.Host), "[]"), mode: t.TLS}
	port, local := s.Port, loopback(r.host)
	switch t.TLS {
	case "", TLSAuto:
		r.mode = TLSStartTLS
		if port == 465 {
			r.mode = TLSImplicit
		} else if local {
			r.mode = TLSAuto
		}
	case TLSStartTLS, TLSImplicit:
	case TLSNone:
		if !local {
			return r, &sendError{
				action: "connect to " + word(r.host, "?"), reason: `notify.tls = "none" is for a mail server on this host alone`,
				advice: `set notify.tls = "auto"`, retry: true,
			}
		}
	default:
		return r, &sendError{
			action: "connect to " + word(r.host, "?"), reason: fmt.Sprintf("notify.tls is %q", t.TLS),
			advice: "set it to auto, starttls, implicit or none", retry: true,
		}
	}
	if port == 0 {
		port = 587
		if r.mode == TLSImplicit {
			port = 465
		}
	}
	r.addr = net.JoinHostPort(r.host, strconv.Itoa(port))
	return r, nil
}

// loopback reports whether host is a name or an address of this host's
// loopback interface.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// conversation is an open connection to a mail server. One goroutine owns it.
type conversation struct {
	route
	ctx            context.Context
	timeout        time.Duration
	user, password string   // for errors: to leave them out
	conn           net.Conn // the raw one: deadlines and the end of everything
	client         *smtp.Client
	action         string      // the step that is being taken, for errors
	stop           func() bool // forgets what the end of ctx would do to conn
	cancel         context.CancelFunc
}

// open connects, encrypts and logs in. The caller closes the conversation.
func (t Transport) open(ctx context.Context, s Settings) (*conversation, error) {
	r, err := t.route(s)
	if err != nil {
		return nil, err
	}
	c := &conversation{route: r, timeout: t.timeout(), user: s.User, password: s.Password}
	c.ctx, c.cancel = context.WithTimeout(ctx, maxSteps*c.timeout)
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
	// A name like localhost can be made to lead elsewhere.
	if remote, ok := raw.RemoteAddr().(*net.TCPAddr); !encrypted && (!ok || !remote.IP.IsLoopback()) {
		return errNotLocal
	}
	return c.login(s)
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
	const local = true // what is not encrypted has been refused unless it is local
	for _, mech := range []struct {
		name string
		auth func() smtp.Auth
	}{
		{"PLAIN", func() smtp.Auth { return smtp.PlainAuth("", s.User, s.Password, c.host, local) }},
		{"LOGIN", func() smtp.Auth { return smtp.LoginAuth(s.User, s.Password, c.host, local) }},
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

// step names what is done next and gives it its time.
func (c *conversation) step(action string) {
	c.action = action
	if c.conn != nil {
		_ = c.conn.SetDeadline(time.Now().Add(c.timeout)) // fails on a closed connection, as the step will
	}
}

// linger lets the step that was begun go on for a moment when ctx ends, instead
// of cutting it: a mail whose acceptance is not heard of is sent twice.
func (c *conversation) linger() {
	if c.stop() {
		conn := c.conn
		c.stop = context.AfterFunc(c.ctx, func() { _ = conn.SetDeadline(time.Now().Add(lingerTime)) })
	}
}

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

func (t Transport) tlsConfig(host string) (*tls.Config, error) {
	conf := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if t.CAFile == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(t.CAFile)
	if err != nil {
		return nil, &caFileError{fmt.Errorf("read notify.ca_file: %w", err)}
	}
	if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
		conf.RootCAs = x509.NewCertPool() // a host without a store of its own
	}
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, &caFileError{fmt.Errorf("read notify.ca_file %s: it holds no PEM certificate", t.CAFile)}
	}
	return conf, nil
}

// helo returns a name to introduce the agent by: servers refuse odd ones.
func helo(name string) string {
	if name == "" {
		name, _ = os.Hostname()
	}
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "localhost"
	}
	return name
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
