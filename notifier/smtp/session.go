package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/textproto"
	"strings"
	"sync"
	"time"

	gomail "github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/log"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// step is how far a session is.
type step int

// The steps, in the order in which a server that offers STARTTLS sees them.
const (
	stepConnect step = iota
	stepGreeting
	stepHello
	stepTLS
	stepLogin
	stepSender
	stepRecipient
	stepData   // from the DATA command until the whole mail is sent
	stepAccept // from then until the server says that it has taken the mail
	stepQuit
)

// session watches the one connection of go-mail's client, which does all the
// talking. What the client cannot do is done here, as its connection, its logger
// and its handler of errors:
//
//   - The client has one deadline for everything before the mail and one for the
//     mail. Here each step has a time of its own, as RFC 5321 (4.5.3.2) asks for.
//   - Once connected it does not look at a context any more. Here its end cuts
//     the connection, or leaves a mail that is being taken a moment.
//   - It reads whatever the server sends. Here that is bounded.
//   - Its SendError keeps its causes to itself, and no error says which step
//     failed.
//
// One goroutine owns it. It is the net.Conn below TLS.
type session struct {
	net.Conn // nil before it is connected
	route
	client *gomail.Client
	ctx    context.Context // ends with the caller's, and after the session's limit
	cancel context.CancelFunc
	stop   func() bool // forgets what the end of ctx would do to Conn

	timeout        time.Duration // of a step
	acceptTimeout  time.Duration // of the answer to a whole mail
	dial           dialFunc
	user, password string // the password may be a token
	token          bool   // it is one
	from, to       string // addresses

	offered string // the server's answer to EHLO
	goAhead bool   // the server answered DATA with 354
	unread  int    // bytes that the server may still send
	failure error  // what failed first in this step, as far as it can be seen here

	mu   sync.Mutex // holds off the end of ctx while a step begins
	step step
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// connect opens a connection over which one mail can be sent: encrypted and
// logged in. The caller closes it.
func connect(ctx context.Context, settings taskdb.MailSettings, t Transport, from, to *mail.Address) (*session, error) {
	r, err := t.route(settings)
	if err != nil {
		return nil, err
	}
	s := &session{
		route: r, timeout: t.timeout(), acceptTimeout: t.acceptTimeout(), dial: t.dial,
		user: settings.User, password: settings.Password, from: from.Address, to: to.Address, unread: maxReplies,
	}
	if s.dial == nil {
		s.dial = (&net.Dialer{}).DialContext
	}
	if t.OAuth != nil {
		if s.user == "" {
			s.user = from.Address
		}
		if s.password, err = t.OAuth.get(ctx, t); err != nil {
			return nil, err
		}
		s.token = true
	}
	s.ctx, s.cancel = context.WithTimeout(ctx, s.limit())
	if err := s.open(t); err != nil {
		if s.token && s.step == stepLogin {
			t.OAuth.drop()
		}
		e := s.explain(s.notOffered(err))
		s.close()
		return nil, e
	}
	return s, nil
}

// takesAddresses returns an error when an address cannot be told to the server: what
// is before the @ has no form in ASCII (RFC 6531).
func (s *session) takesAddresses() error {
	if s.offers("SMTPUTF8") {
		return nil
	}
	const reason = "its part before the @ is outside ASCII, which this server does not take (SMTPUTF8)"
	switch {
	case !ascii(s.from):
		return &sendError{action: "announce the sender " + s.from + " to " + s.addr, reason: reason, advice: "set smtp_from in deployment_config", retry: true}
	case !ascii(s.to):
		return &sendError{action: "name the recipient " + s.to + " to " + s.addr, reason: reason, advice: "give this administrator another address"}
	}
	return nil
}

// offers reports whether the server's answer to EHLO has the keyword.
func (s *session) offers(keyword string) bool {
	for line := range strings.Lines(s.offered) {
		if word, _, _ := strings.Cut(strings.TrimSpace(line), " "); strings.EqualFold(word, keyword) {
			return true
		}
	}
	return false
}

func (s *session) open(t Transport) error {
	conf, err := t.tlsConfig(s.host)
	if err != nil {
		return err
	}
	options := []gomail.Option{
		gomail.WithHELO(helo(t.Helo)), gomail.WithTimeout(s.timeout), gomail.WithTLSConfig(conf),
		gomail.WithDialContextFunc(func(ctx context.Context, network, _ string) (net.Conn, error) {
			return s.dialServer(ctx, network, conf)
		}),
		gomail.WithLogger(s), gomail.WithDebugLog(),
		// A RSET that fails after the mail was taken would look like a failed mail.
		gomail.WithoutRset(), gomail.WithoutNoop(),
	}
	switch s.mode {
	case TLSImplicit:
		options = append(options, gomail.WithSSL())
	case TLSStartTLS:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	case TLSAuto:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSOpportunistic))
	case TLSNone:
		options = append(options, gomail.WithTLSPolicy(gomail.NoTLS))
	}
	switch {
	case s.token:
		options = append(options, gomail.WithUsername(s.user), gomail.WithPassword(s.password), gomail.WithSMTPAuth(gomail.SMTPAuthXOAUTH2))
	case s.user != "":
		// Over a verified connection, and to this host, PLAIN is the mechanism that
		// works wherever the password is right; servers offer the challenge
		// mechanisms even for users who have none. What is not encrypted was refused
		// unless it is local, hence NoEnc.
		options = append(options, gomail.WithUsername(s.user), gomail.WithPassword(s.password),
			gomail.WithOpportunisticSMTPAuth(gomail.SMTPAuthPlainNoEnc, gomail.SMTPAuthLoginNoEnc,
				gomail.SMTPAuthSCRAMSHA256, gomail.SMTPAuthSCRAMSHA1, gomail.SMTPAuthCramMD5))
	}
	if ascii(s.from) && ascii(s.to) {
		// Asking for SMTPUTF8 without need can make a mail undeliverable further on.
		options = append(options, gomail.WithoutSMTPUTF8())
	}
	if s.client, err = gomail.NewClient(s.host, options...); err != nil {
		return err
	}
	s.client.ErrorHandlerRegistry.SetDefaultHandler(s)
	return s.client.DialWithContext(s.ctx)
}

// dialServer connects, and starts implicit TLS: the client would do that only
// with a dialer of its own.
func (s *session) dialServer(ctx context.Context, network string, conf *tls.Config) (net.Conn, error) {
	conn, err := s.dial(ctx, network, s.addr)
	if err != nil {
		return nil, err
	}
	s.Conn = conn
	s.stop = context.AfterFunc(s.ctx, s.interrupt)
	if (s.mode == TLSNone || s.mode == TLSAuto) && !local(conn.RemoteAddr()) {
		return nil, errNotLocal
	}
	if s.mode != TLSImplicit {
		s.enter(stepGreeting)
		return s, nil
	}
	s.enter(stepTLS)
	encrypted := tls.Client(s, conf)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	s.enter(stepGreeting)
	return encrypted, nil
}

// local reports whether a connection to a really stays on this host: a name
// like localhost can be made to lead elsewhere.
func local(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > '~' })
}

// Debugf is told each command before the client sends it, and each answer that
// the client expected. A login is told without its secrets.
func (s *session) Debugf(l log.Log) {
	if l.Direction == log.DirServerToClient {
		if code, ok := l.Messages[0].(int); ok && code == 250 && s.step <= stepTLS {
			s.offered = fmt.Sprint(l.Messages[1:]...)
		} else if ok && code == 354 {
			s.goAhead = true
		}
		return
	}
	switch command, _, _ := strings.Cut(l.Format, " "); {
	case command == "EHLO" && s.step == stepGreeting:
		s.enter(stepHello)
	case command == "STARTTLS":
		s.enter(stepTLS)
	case command == "%s" && s.step < stepLogin:
		s.enter(stepLogin)
	case command == "MAIL":
		s.enter(stepSender)
	case command == "RCPT":
		s.enter(stepRecipient)
	case command == "DATA":
		s.enter(stepData)
	}
}

// Infof, Warnf and Errorf are for the client's interface; it calls only Debugf.
func (s *session) Infof(log.Log) {}

// Warnf does nothing.
func (s *session) Warnf(log.Log) {}

// Errorf does nothing.
func (s *session) Errorf(log.Log) {}

// HandleError is told each answer that the client did not expect.
func (s *session) HandleError(_, _ string, _ *textproto.Conn, err error) error {
	s.fail(err)
	return err
}

func (s *session) fail(err error) {
	if err != nil && s.failure == nil {
		s.failure = err
	}
}

// Read reads what the server may still send. When the mail is sent, the first
// Read begins to wait for its acceptance.
func (s *session) Read(p []byte) (int, error) {
	if s.step == stepData && s.goAhead {
		s.enter(stepAccept)
	}
	if s.unread <= 0 {
		s.fail(errTooTalkative)
		return 0, errTooTalkative
	}
	n, err := s.Conn.Read(p[:min(len(p), s.unread)])
	s.unread -= n
	s.fail(err)
	return n, err
}

// Write remembers its error: the client's does not lead to it.
func (s *session) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	s.fail(err)
	return n, err
}

// enter begins a step and gives it its time.
func (s *session) enter(next step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step, s.failure = next, nil
	if next == stepTLS {
		s.offered = "" // what was said in the clear counts no more
	}
	timeout := s.stepTimeout()
	if s.ctx.Err() != nil {
		timeout = min(timeout, stopGrace)
	}
	_ = s.SetDeadline(time.Now().Add(timeout)) // fails on a closed connection, as the step will
}

// interrupt is called when ctx ends. A mail that the server may be taking is
// given a moment instead of being cut: one whose acceptance is not heard of is
// sent twice.
func (s *session) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.step == stepData || s.step == stepAccept {
		_ = s.SetDeadline(time.Now().Add(stopGrace))
		return
	}
	_ = s.Conn.Close()
}

func (s *session) stepTimeout() time.Duration {
	if s.step == stepAccept {
		return s.acceptTimeout
	}
	return s.timeout
}

// limit is how long the whole session may take, however slowly the server answers.
func (s *session) limit() time.Duration { return maxSteps*s.timeout + s.acceptTimeout }

// notOffered returns an error of ours where err is the client's for a server that
// does not offer what is needed, else err.
func (s *session) notOffered(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.offered == "": // not asked yet
	case s.mode == TLSStartTLS && s.step == stepHello:
		s.step = stepTLS
		return errNoSTARTTLS
	case s.user != "" && s.step < stepLogin && s.mechanisms() == "":
		s.step = stepLogin
		return errNoLogin
	case errors.Is(err, gomail.ErrNoSupportedAuthDiscovered):
		s.step = stepLogin
		return fmt.Errorf("%w: it offers %s", errNoMechanism, notifier.Label(s.mechanisms(), "none"))
	}
	return err
}

// mechanisms returns the ways to log in that the server offers, "" for none.
func (s *session) mechanisms() string {
	for line := range strings.Lines(s.offered) {
		if keyword, mechanisms, _ := strings.Cut(strings.TrimSpace(line), " "); strings.EqualFold(keyword, "AUTH") {
			return mechanisms
		}
	}
	return ""
}

// cause returns what made a send fail.
func (s *session) cause(err error) error {
	var e *gomail.SendError
	if !errors.As(err, &e) {
		return err
	}
	if s.failure != nil {
		return s.failure
	}
	// The answer to the mail itself is told neither to the logger nor to the
	// handler of errors.
	if code := e.ErrorCode(); code != 0 {
		text, _, _ := strings.Cut(strings.TrimPrefix(e.Error(), e.Reason.String()+": "), ", affected ")
		return &textproto.Error{Code: code, Msg: strings.TrimPrefix(text, fmt.Sprint(code, " "))}
	}
	return err
}

// quit says goodbye. What the server answers changes nothing any more.
func (s *session) quit() {
	if s.ctx.Err() != nil {
		return
	}
	s.enter(stepQuit)
	_ = s.client.Close()
}

// close ends the session without saying goodbye.
func (s *session) close() {
	if s.Conn != nil {
		s.stop()
		_ = s.Conn.Close()
	}
	s.cancel()
}
