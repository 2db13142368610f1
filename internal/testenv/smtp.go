package testenv

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// SMTPOptions says what kind of mail server to start. The zero value takes
// mail in the clear, from anyone.
type SMTPOptions struct {
	STARTTLS bool // offer STARTTLS
	Implicit bool // speak TLS from the first byte on, as on port 465
	// Hosts are the names and addresses the certificate is for; by default
	// localhost, 127.0.0.1 and ::1.
	Hosts []string
	// User and Password make the server refuse mail without this login.
	User, Password string
	Mechanisms     []string // of the login; by default PLAIN and LOGIN
	// UTF8 makes the server take addresses outside ASCII (SMTPUTF8).
	UTF8 bool
	// Dir, when set, receives every accepted mail as an .eml file.
	Dir string
}

// Mail is one message the server accepted.
type Mail struct {
	From string   // of the envelope
	To   []string // of the envelope
	Raw  []byte   // header and body as they were sent
	TLS  bool     // it came over an encrypted connection
	User string   // who had logged in, "" for no login
}

// Refusal is an answer the server gives instead of accepting.
type Refusal struct {
	Verb    string // AUTH, MAIL, RCPT or DATA
	Address string // only for this recipient (RCPT, DATA) or sender (MAIL); "" is any
	Code    int    // 4xx or 5xx
	Times   int    // how often, 0 is always
}

// SMTP is a real mail server on the loopback address. It keeps what it
// accepts in memory.
type SMTP struct {
	Host string // 127.0.0.1
	Port int
	// CAPEM is the certificate, PEM encoded, of the authority that signed the
	// server's; nil without TLS.
	CAPEM []byte

	opts     SMTPOptions
	server   *smtp.Server
	listener *trackedListener
	served   chan error

	mu       sync.Mutex
	mails    []Mail
	refusals []Refusal
	refused  int
	changed  chan struct{} // closed and replaced whenever something arrives
}

// StartSMTP starts a mail server. The caller closes it.
func StartSMTP(opts SMTPOptions) (*SMTP, error) {
	s := &SMTP{opts: opts, changed: make(chan struct{}), served: make(chan error, 1)}
	if len(s.opts.Mechanisms) == 0 {
		s.opts.Mechanisms = []string{"PLAIN", "LOGIN"}
	}
	s.server = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		return &smtpSession{server: s, conn: c}, nil
	}))
	s.server.Domain = "localhost"
	s.server.AllowInsecureAuth = true
	s.server.EnableSMTPUTF8 = opts.UTF8
	s.server.ErrorLog = log.New(io.Discard, "", 0) // clients that hang up are part of the tests

	var conf *tls.Config
	if opts.STARTTLS || opts.Implicit {
		hosts := opts.Hosts
		if len(hosts) == 0 {
			hosts = []string{"localhost", "127.0.0.1", "::1"}
		}
		cert, ca, err := issueCertificate(hosts)
		if err != nil {
			return nil, fmt.Errorf("issue a certificate for the SMTP server: %w", err)
		}
		s.CAPEM, conf = ca, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if opts.STARTTLS {
		s.server.TLSConfig = conf
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for SMTP: %w", err)
	}
	s.Host, s.Port = "127.0.0.1", l.Addr().(*net.TCPAddr).Port
	s.listener = &trackedListener{Listener: l, conns: map[net.Conn]bool{}}
	var serving net.Listener = s.listener
	if opts.Implicit {
		serving = tls.NewListener(serving, conf)
	}
	go func() { s.served <- s.server.Serve(serving) }()
	return s, nil
}

// NewSMTP starts a mail server that ends with the test.
func NewSMTP(t testing.TB, opts SMTPOptions) *SMTP {
	t.Helper()
	s, err := StartSMTP(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Close ends the server, cuts its connections and waits until every one of
// its goroutines has ended.
func (s *SMTP) Close() error {
	s.listener.cut()
	err := s.server.Shutdown(context.Background())
	_ = s.listener.Close() // which the server does not know of before it serves
	<-s.served
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the SMTP server: %w", err)
	}
	return nil
}

// Addr returns the server's address as host:port.
func (s *SMTP) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// WriteCA writes the authority's certificate to a file in dir and returns the
// file's path.
func (s *SMTP) WriteCA(dir string) (string, error) {
	path := filepath.Join(dir, "smtp-ca.pem")
	if err := os.WriteFile(path, s.CAPEM, 0o600); err != nil {
		return "", fmt.Errorf("write the SMTP authority: %w", err)
	}
	return path, nil
}

// Refuse makes the server answer r when it applies. Refusals are asked in the
// order they were added.
func (s *SMTP) Refuse(r Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Times == 0 {
		r.Times = -1
	}
	s.refusals = append(s.refusals, r)
}

// Mails returns what the server accepted so far, oldest first.
func (s *SMTP) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

// Refused returns how many times the server refused something.
func (s *SMTP) Refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// Await waits until the server has accepted n mails in all and returns them,
// or an error that says how many came when ctx ends first.
func (s *SMTP) Await(ctx context.Context, n int) ([]Mail, error) {
	err := s.await(ctx, func() bool { return len(s.mails) >= n })
	if err != nil {
		return s.Mails(), fmt.Errorf("await %d mails, got %d: %w", n, len(s.Mails()), err)
	}
	return s.Mails(), nil
}

// AwaitRefused waits until the server has refused n times in all.
func (s *SMTP) AwaitRefused(ctx context.Context, n int) error {
	err := s.await(ctx, func() bool { return s.refused >= n })
	if err != nil {
		return fmt.Errorf("await %d refusals, got %d: %w", n, s.Refused(), err)
	}
	return nil
}

// await waits until done, which is called with the lock held, says so.
func (s *SMTP) await(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := done(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// announce wakes whoever awaits something; the lock is held.
func (s *SMTP) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// refusal returns the error to answer with, nil to go on.
func (s *SMTP) refusal(verb string, addresses ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range s.refusals {
		if r.Verb != verb || r.Times == 0 || r.Address != "" && !slices.Contains(addresses, r.Address) {
			continue
		}
		if r.Times > 0 {
			s.refusals[i].Times--
		}
		s.refused++
		s.announce()
		return &smtp.SMTPError{
			Code: r.Code, EnhancedCode: smtp.EnhancedCode{r.Code / 100, 0, 0},
			Message: "refused by the test's script",
		}
	}
	return nil
}

func (s *SMTP) accept(m Mail) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opts.Dir != "" {
		name := fmt.Sprintf("%04d.eml", len(s.mails)+1)
		if err := os.WriteFile(filepath.Join(s.opts.Dir, name), m.Raw, 0o600); err != nil {
			return err
		}
	}
	s.mails = append(s.mails, m)
	s.announce()
	return nil
}

// smtpSession is one client's conversation.
type smtpSession struct {
	server *SMTP
	conn   *smtp.Conn
	user   string
	mail   Mail
}

var _ smtp.AuthSession = (*smtpSession)(nil)

// AuthMechanisms returns what the server offers: nothing without a login.
func (s *smtpSession) AuthMechanisms() []string {
	if s.server.opts.User == "" {
		return nil
	}
	return s.server.opts.Mechanisms
}

// Auth returns the server's side of a login.
func (s *smtpSession) Auth(mech string) (sasl.Server, error) {
	if !slices.Contains(s.AuthMechanisms(), mech) {
		return nil, smtp.ErrAuthUnknownMechanism
	}
	check := func(user, password string) error {
		if err := s.server.refusal("AUTH"); err != nil {
			return err
		}
		if user != s.server.opts.User || password != s.server.opts.Password {
			return smtp.ErrAuthFailed
		}
		s.user = user
		return nil
	}
	if mech == "LOGIN" {
		return &loginServer{check: check}, nil
	}
	if mech == "XOAUTH2" {
		return &xoauth2Server{check: check}, nil
	}
	return sasl.NewPlainServer(func(_, user, password string) error { return check(user, password) }), nil
}

// Mail begins a mail.
func (s *smtpSession) Mail(from string, _ *smtp.MailOptions) error {
	if s.server.opts.User != "" && s.user == "" {
		return &smtp.SMTPError{Code: 530, EnhancedCode: smtp.EnhancedCode{5, 7, 0}, Message: "Authentication required"}
	}
	if err := s.server.refusal("MAIL", from); err != nil {
		return err
	}
	_, encrypted := s.conn.TLSConnectionState()
	s.mail = Mail{From: from, TLS: encrypted, User: s.user}
	return nil
}

// Rcpt adds a recipient.
func (s *smtpSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	if err := s.server.refusal("RCPT", to); err != nil {
		return err
	}
	s.mail.To = append(s.mail.To, to)
	return nil
}

// Data takes the message itself.
func (s *smtpSession) Data(r io.Reader) error {
	var raw bytes.Buffer
	if _, err := raw.ReadFrom(r); err != nil {
		return err
	}
	if err := s.server.refusal("DATA", s.mail.To...); err != nil {
		return err
	}
	s.mail.Raw = raw.Bytes()
	return s.server.accept(s.mail)
}

// Reset forgets the mail that was begun.
func (s *smtpSession) Reset() { s.mail = Mail{} }

// Logout ends the conversation.
func (s *smtpSession) Logout() error { return nil }

// loginServer is the server's side of the LOGIN mechanism, which go-sasl only
// has for clients.
type loginServer struct {
	check func(user, password string) error
	user  *string
}

// Next takes the client's answer to the last challenge.
func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	switch {
	case response == nil:
		return []byte("Username:"), false, nil
	case l.user == nil:
		user := string(response)
		l.user = &user
		return []byte("Password:"), false, nil
	default:
		return nil, true, l.check(*l.user, strings.TrimSpace(string(response)))
	}
}

// trackedListener can cut what it accepted: go-smtp's Shutdown alone would
// wait for clients that never leave.
type trackedListener struct {
	net.Listener
	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
}

// Accept returns the next connection.
func (l *trackedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	l.conns[c] = true
	return &trackedConn{Conn: c, listener: l}, nil
}

func (l *trackedListener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.conns {
		_ = c.SetDeadline(time.Unix(1, 0)) // wakes readers; the server's own goroutine closes
	}
}

type trackedConn struct {
	net.Conn
	listener *trackedListener
}

// Close closes the connection and forgets it.
func (c *trackedConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c.Conn)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// xoauth2Server is the server's side of the XOAUTH2 mechanism, with a token in the
// place of the password.
type xoauth2Server struct {
	check func(user, token string) error
}

func (x *xoauth2Server) Next(response []byte) (challenge []byte, done bool, err error) {
	user, rest, ok := strings.Cut(string(response), "\x01auth=Bearer ")
	user, isUser := strings.CutPrefix(user, "user=")
	token, isEnd := strings.CutSuffix(rest, "\x01\x01")
	if !ok || !isUser || !isEnd {
		return nil, true, errors.New("not in the form of XOAUTH2")
	}
	return nil, true, x.check(user, token)
}
