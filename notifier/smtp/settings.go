package smtp

import (
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

	"golang.org/x/net/idna"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// configured reports whether there is a server to send through.
func configured(s taskdb.MailSettings) bool { return strings.TrimSpace(s.Host) != "" }

// sender returns the address mail comes from.
func sender(s taskdb.MailSettings) (*mail.Address, error) {
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
	a, err := parseAddress(quoteName(from))
	if err != nil {
		return nil, &sendError{
			action: "find the sender's address", reason: fmt.Sprintf("%s is %q, which is not a mail address", column, notifier.Label(from, "")),
			advice: "set smtp_from in deployment_config", err: err, retry: true,
		}
	}
	if a.Address, err = asciiDomain(a.Address); err != nil {
		return nil, &sendError{
			action: "find the sender's address", reason: fmt.Sprintf("%s: %s", column, plainError(err)),
			advice: "set smtp_from in deployment_config", err: err, retry: true,
		}
	}
	return a, nil
}

// parseAddress reads an address, with a name or without. The result holds no
// character that could break a header or an SMTP command.
func parseAddress(s string) (*mail.Address, error) {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' }) {
		return nil, errors.New("it contains control characters")
	}
	a, err := mail.ParseAddress(s)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "mail: "))
	}
	a.Name = notifier.OneLine(a.Name)
	return a, nil
}

// quoteName quotes the name before an address in angle brackets, which people write
// as it is: WrkTalk [prod] <a@b.c>, Smith, John <a@b.c> (RFC 5322, 3.2.4). What is
// right already, or is more than one address, stays as it is.
func quoteName(s string) string {
	s = strings.TrimSpace(s)
	open := strings.LastIndexByte(s, '<')
	if _, err := mail.ParseAddress(s); err == nil || open <= 0 || !strings.HasSuffix(s, ">") {
		return s
	}
	name, address := strings.TrimSpace(s[:open]), s[open:]
	if strings.ContainsAny(name, "<>") || strings.Contains(name, "@") && strings.ContainsAny(name, ",;") {
		return s
	}
	name = strings.NewReplacer(`\`, ``, `"`, ``).Replace(name)
	return `"` + name + `" ` + address
}

// asciiDomain returns the address with its domain as it is in DNS (RFC 5891), which
// every server takes.
func asciiDomain(address string) (string, error) {
	at := strings.LastIndexByte(address, '@')
	if ascii(address[at+1:]) {
		return address, nil
	}
	domain, err := idna.Lookup.ToASCII(address[at+1:])
	if err != nil {
		return "", fmt.Errorf("its domain is none: %w", err)
	}
	return address[:at+1] + domain, nil
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
	// Timeout bounds each step of a session; 0 is 30 seconds. A whole session
	// takes at most ten of them, and the time the server has to accept the mail.
	Timeout time.Duration

	// OAuth logs in with a token instead of smtp_password; nil does not.
	OAuth *OAuth

	accept time.Duration // tests: instead of acceptTimeout
	dial   dialFunc      // tests: instead of a net.Dialer's
}

const (
	defaultTimeout = 30 * time.Second
	maxSteps       = 10
	// acceptTimeout is what a server may need to answer once it has a whole mail
	// (RFC 5321, 4.5.3.2.6): whoever asks again sooner sends the mail twice.
	acceptTimeout = 10 * time.Minute
	// stopGrace is how long a stop waits for that answer. The supervisor gives
	// the notifier 40 seconds.
	stopGrace = 20 * time.Second
	// maxReplies bounds what a server may say in one session, so that one that
	// never stops talking cannot fill the memory.
	maxReplies = 1 << 20 // bytes
)

func (t Transport) timeout() time.Duration {
	if t.Timeout <= 0 {
		return defaultTimeout
	}
	return t.Timeout
}

// acceptTimeout returns how long the server may take to accept a mail.
func (t Transport) acceptTimeout() time.Duration {
	if t.accept > 0 {
		return t.accept
	}
	return max(acceptTimeout, t.timeout())
}

// route is where and how to connect: what settings and transport say together.
type route struct {
	host, addr string
	mode       TLSMode // auto is STARTTLS if offered: on the loopback address alone
}

func (t Transport) route(s taskdb.MailSettings) (route, error) {
	r := route{host: strings.Trim(strings.TrimSpace(s.Host), "[]"), mode: t.TLS}
	port, local := s.Port, loopback(r.host)
	if host, port, scheme := splitHost(s.Host); port != "" || scheme != "" {
		advice := "set smtp_host to " + notifier.Label(host, "") + " alone in deployment_config"
		if port != "" {
			advice = "set smtp_host to " + notifier.Label(host, "") + " and smtp_port to " + port + " in deployment_config"
		}
		return r, &sendError{
			action: "connect to the mail server", reason: fmt.Sprintf("smtp_host is %q, which is more than a name or an address", notifier.Label(s.Host, "")),
			advice: advice, retry: true,
		}
	}
	if strings.ContainsFunc(r.host, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '/' }) || port < 0 || port > 65535 {
		return r, &sendError{
			action: "connect to the mail server", reason: fmt.Sprintf("%q port %d is no address of one", notifier.Label(r.host, ""), port),
			advice: "correct smtp_host and smtp_port in deployment_config", retry: true,
		}
	}
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
				action: "connect to " + notifier.Label(r.host, "?"), reason: `notify.tls = "none" is for a mail server on this host alone`,
				advice: `set notify.tls = "auto"`, retry: true,
			}
		}
	default:
		return r, &sendError{
			action: "connect to " + notifier.Label(r.host, "?"), reason: fmt.Sprintf("notify.tls is %q", t.TLS),
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

// splitHost takes apart what people write in the place of a host: host:port,
// [address]:port, smtp://host:port/. Port and scheme are "" for a plain host or
// address.
func splitHost(s string) (host, port, scheme string) {
	host = strings.TrimSpace(s)
	if before, after, ok := strings.Cut(host, "://"); ok {
		scheme, host = before, strings.TrimRight(after, "/")
	}
	if net.ParseIP(host) != nil { // an IPv6 address has colons of its own
		return host, "", scheme
	}
	if h, p, err := net.SplitHostPort(host); err == nil {
		if _, err := strconv.ParseUint(p, 10, 16); err == nil {
			return h, p, scheme
		}
	}
	return host, "", scheme
}

// loopback reports whether host is a name or an address of this host's
// loopback interface.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (t Transport) tlsConfig(host string) (*tls.Config, error) {
	conf := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if t.CAFile == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(t.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read notify.ca_file: %w", err)
	}
	if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
		conf.RootCAs = x509.NewCertPool() // a host without a store of its own
	}
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read notify.ca_file %s: it holds no PEM certificate", t.CAFile)
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
