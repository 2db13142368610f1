package smtp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"strings"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// ErrNotConfigured says that deployment_config names no mail server.
var ErrNotConfigured = errors.New("no mail server is configured: set smtp_host in deployment_config to get mail")

var (
	errNoSTARTTLS   = errors.New("the server does not offer STARTTLS, and mail is never sent in the clear to another host")
	errNotLocal     = errors.New("the name leads to another host, and mail is never sent in the clear to another host")
	errNoLogin      = errors.New("smtp_user is set, but the server offers no login")
	errNoMechanism  = errors.New("the server offers no way to log in that the agent knows")
	errTooTalkative = errors.New("the server does not stop talking")
)

// sendError says what failed, why, and what to do about it.
type sendError struct {
	action, reason, advice string
	retry                  bool
	err                    error
}

// Error returns one line.
func (e *sendError) Error() string {
	s := e.action + ": " + e.reason
	if e.advice != "" {
		s += "; " + e.advice
	}
	return s
}

// Unwrap returns the cause.
func (e *sendError) Unwrap() error { return e.err }

// explain turns an error of the current step into one that helps. All of them
// may pass, or be mended in deployment_config: it is said to be worth a retry.
func (s *session) explain(err error) *sendError {
	e := &sendError{action: s.action(), err: err, retry: true}
	e.reason, e.advice = s.because(err)
	e.reason = s.mask(e.reason)
	return e
}

// action names the current step.
func (s *session) action() string {
	switch s.step {
	case stepConnect:
		return "connect to " + s.addr
	case stepGreeting:
		return "wait for the greeting of " + s.addr
	case stepHello:
		return "introduce ourselves to " + s.addr
	case stepTLS:
		return "start TLS with " + s.addr
	case stepLogin:
		return "log in to " + s.addr
	case stepSender:
		return "announce the sender " + s.from + " to " + s.addr
	case stepRecipient:
		return "name the recipient " + s.to + " to " + s.addr
	case stepData:
		return "hand the mail for " + s.to + " to " + s.addr
	case stepAccept:
		return "wait until " + s.addr + " has taken the mail for " + s.to
	default:
		return "say goodbye to " + s.addr
	}
}

func (s *session) because(err error) (reason, advice string) {
	var (
		reply     *textproto.Error
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		dns       *net.DNSError
		timeout   net.Error
	)
	trust := "set notify.ca_file to the PEM file of the authority that signed it"
	if s.mode == TLSAuto {
		trust += `, or notify.tls = "none" for this local server`
	}
	switch {
	case errors.As(err, &authority):
		return "the server's certificate is signed by an authority this host does not know", trust
	case errors.As(err, &name):
		return fmt.Sprintf("the server's certificate is for %s, not for %s", certificateNames(name.Certificate), s.host),
			"set smtp_host in deployment_config to a name it is for"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("the server's certificate is valid from %s to %s only",
			invalid.Cert.NotBefore.UTC().Format(timeLayout), invalid.Cert.NotAfter.UTC().Format(timeLayout)), "renew it, or check this host's clock"
	case errors.As(err, &invalid):
		return "the server's certificate cannot be trusted: " + plainError(invalid), trust
	case errors.As(err, &record):
		return "the server does not speak TLS from the start on this port", `set notify.tls = "starttls", or smtp_port to the right one`
	case errors.Is(err, errNoSTARTTLS):
		return err.Error(), "set smtp_port to one that offers STARTTLS, or to 465 for implicit TLS"
	case errors.Is(err, errNotLocal):
		return err.Error(), "set smtp_host in deployment_config to the server's own name"
	case errors.Is(err, errNoLogin):
		return err.Error(), "clear smtp_user and smtp_password in deployment_config, or use the port that offers a login"
	case errors.As(err, &reply):
		return "the server answered " + answer(reply), s.replyAdvice(reply)
	case errors.As(err, &dns):
		return "the name cannot be resolved (" + plainError(dns) + ")", "check smtp_host in deployment_config and this host's DNS"
	case s.ctx.Err() != nil && !errors.Is(s.ctx.Err(), context.DeadlineExceeded):
		return "interrupted", ""
	case s.ctx.Err() != nil:
		return fmt.Sprintf("the conversation was not over within %s", s.limit()), "look into what slows the server down"
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, os.ErrDeadlineExceeded):
		advice = "check smtp_host and smtp_port in deployment_config and the firewall"
		if s.step == stepGreeting && s.mode != TLSImplicit {
			advice += "; " + speaksTLS
		}
		if s.step == stepAccept {
			advice = "it may have taken the mail all the same, which then comes twice, with one Message-ID"
		}
		return fmt.Sprintf("no answer within %s", s.stepTimeout()), advice
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused", "check smtp_host and smtp_port in deployment_config, and that the server runs"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		if s.step == stepGreeting && s.mode != TLSImplicit {
			advice = speaksTLS
		}
		return "the server closed the connection", advice
	default:
		return plainError(err), ""
	}
}

const timeLayout = "2006-01-02 15:04:05 UTC"

const speaksTLS = `if this port speaks TLS from the start, set notify.tls = "implicit"`

func (s *session) replyAdvice(r *textproto.Error) string {
	switch {
	case loginRefused(r.Code) && s.token:
		return "the token is valid, but not for this mailbox: check smtp_user in deployment_config, and that the application may send for it (in Exchange Online: SMTP.SendAsApp, New-ServicePrincipal and Add-MailboxPermission)"
	case strings.Contains(r.Msg, "5.7.139"):
		return "Exchange Online takes no passwords (basic authentication is off): set notify.oauth_token_url, notify.oauth_client_id and notify.oauth_client_secret"
	case loginRefused(r.Code):
		return "check smtp_user and smtp_password in deployment_config"
	case s.step == stepLogin:
		return "if it stays so, check smtp_user and smtp_password in deployment_config"
	default:
		return ""
	}
}

// loginRefused reports whether a reply is about who we are, not about the mail.
func loginRefused(code int) bool {
	return code == 530 || code == 534 || code == 535 || code == 538
}

// answer shows a server's reply on one line.
func answer(r *textproto.Error) string {
	const limit = 300
	return fmt.Sprintf("%d %s", r.Code, task.SafeText(notifier.OneLine(r.Msg), limit))
}

func plainError(err error) string {
	const limit = 300
	return task.SafeText(notifier.OneLine(err.Error()), limit)
}

// mask hides the password, in case a server repeats what it was told.
func (s *session) mask(text string) string {
	if s.password == "" {
		return text
	}
	for _, told := range []string{
		s.password,
		base64.StdEncoding.EncodeToString([]byte(s.password)),                                                      // LOGIN
		base64.StdEncoding.EncodeToString([]byte("\x00" + s.user + "\x00" + s.password)),                           // PLAIN
		base64.StdEncoding.EncodeToString([]byte("user=" + s.user + "\x01auth=Bearer " + s.password + "\x01\x01")), // XOAUTH2
	} {
		text = strings.ReplaceAll(text, told, "***")
	}
	return text
}

func certificateNames(cert *x509.Certificate) string {
	if cert == nil {
		return "another name"
	}
	names := append([]string(nil), cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "no name at all"
	}
	const most = 5
	if len(names) > most {
		names = append(names[:most], "others")
	}
	return notifier.Label(strings.Join(names, ", "), "another name")
}
