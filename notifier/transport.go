package notifier

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
	return fmt.Sprintf("%q port %d, login %q, from %q", s.Host, s.Port, s.User, s.From)
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
	// mail takes at most ten of them, and the time the server has to take it.
	Timeout time.Duration

	taking time.Duration // tests: instead of takingTime
}

const (
	defaultTimeout = 30 * time.Second
	maxSteps       = 10
	// takingTime is what a server may need to answer once it has a whole mail
	// (RFC 5321, 4.5.3.2.6): whoever asks again sooner sends the mail twice.
	takingTime = 10 * time.Minute
	// lingerTime is how long a stop waits for that answer. The supervisor gives
	// the notifier 40 seconds.
	lingerTime = 20 * time.Second
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

// takingTime returns how long the server may take to accept a mail.
func (t Transport) takingTime() time.Duration {
	if t.taking > 0 {
		return t.taking
	}
	return max(takingTime, t.timeout())
}

// route is what settings and transport come to together.
type route struct {
	host, addr string
	mode       TLSMode // auto is STARTTLS if offered: on the loopback address alone
}

func (t Transport) route(s Settings) (route, error) {
	r := route{host: strings.Trim(strings.TrimSpace(s.Host), "[]"), mode: t.TLS}
	port, local := s.Port, loopback(r.host)
	if strings.ContainsFunc(r.host, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '/' }) || port < 0 || port > 65535 {
		return r, &sendError{
			action: "connect to the mail server", reason: fmt.Sprintf("%q port %d is no address of one", word(r.host, ""), port),
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
