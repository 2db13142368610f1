package smtp

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

const password = "pa55 w0rd=ü"

// sendMail sends one mail to ada@example.com.
func sendMail(ctx context.Context, s taskdb.MailSettings, t Transport) (retry bool, err error) {
	return (&Channel{settings: s, transport: t}).Send(ctx, notifier.Message{
		Recipient: notifier.Recipient{Address: "ada@example.com"}, ID: "id@example.com", Date: time.Now(),
		Content: notifier.Content{Subject: "subject", Text: "text", HTML: "<p>text</p>"},
	})
}

func TestDefect23EncryptionAndLogin(t *testing.T) {
	for _, c := range []struct {
		name   string
		server testenv.SMTPOptions
		tls    TLSMode
		trust  bool // give the client the server's authority
		user   string
		pass   string
		// want is "" for a delivered mail, otherwise a part of the error.
		want      string
		encrypted bool
	}{
		{name: "plain on loopback"},
		{name: "none on loopback", tls: TLSNone},
		{name: "none leaves STARTTLS alone", server: testenv.SMTPOptions{STARTTLS: true}, tls: TLSNone},
		{name: "STARTTLS is taken when offered", server: testenv.SMTPOptions{STARTTLS: true}, trust: true, encrypted: true},
		{name: "STARTTLS demanded", server: testenv.SMTPOptions{STARTTLS: true}, tls: TLSStartTLS, trust: true, encrypted: true},
		{name: "STARTTLS demanded and not offered", tls: TLSStartTLS, want: "does not offer STARTTLS"},
		{name: "implicit", server: testenv.SMTPOptions{Implicit: true}, tls: TLSImplicit, trust: true, encrypted: true},
		{name: "implicit on a plain port", tls: TLSImplicit, want: "does not speak TLS from the start"},
		{
			name: "unknown authority", server: testenv.SMTPOptions{STARTTLS: true},
			want: "signed by an authority this host does not know; set notify.ca_file",
		},
		{
			name: "unknown authority, demanded", server: testenv.SMTPOptions{STARTTLS: true}, tls: TLSStartTLS,
			want: "signed by an authority this host does not know; set notify.ca_file",
		},
		{
			name: "unknown authority, implicit", server: testenv.SMTPOptions{Implicit: true}, tls: TLSImplicit,
			want: "signed by an authority this host does not know; set notify.ca_file",
		},
		{
			name: "certificate for another name", server: testenv.SMTPOptions{STARTTLS: true, Hosts: []string{"mail.example.com", "mx.example.com"}},
			trust: true, want: "certificate is for mail.example.com, mx.example.com, not for 127.0.0.1; set smtp_host",
		},
		{name: "login over STARTTLS", server: testenv.SMTPOptions{STARTTLS: true, User: "agent", Password: password}, trust: true, user: "agent", pass: password, encrypted: true},
		{name: "login over implicit TLS", server: testenv.SMTPOptions{Implicit: true, User: "agent", Password: password}, tls: TLSImplicit, trust: true, user: "agent", pass: password, encrypted: true},
		{name: "login in the clear on loopback", server: testenv.SMTPOptions{User: "agent", Password: password}, user: "agent", pass: password},
		{name: "only LOGIN", server: testenv.SMTPOptions{User: "agent", Password: password, Mechanisms: []string{"LOGIN"}}, user: "agent", pass: password},
		{name: "no mechanism in common", server: testenv.SMTPOptions{User: "agent", Password: password, Mechanisms: []string{"GSSAPI"}}, user: "agent", pass: password, want: "it offers GSSAPI"},
		{name: "wrong password", server: testenv.SMTPOptions{User: "agent", Password: "other"}, user: "agent", pass: password, want: "535 5.7.8 Authentication failed; check smtp_user and smtp_password"},
		{name: "login wanted and not offered", user: "agent", pass: password, want: "offers no login; clear smtp_user"},
		{name: "login missing", server: testenv.SMTPOptions{User: "agent", Password: password}, want: "530 5.7.0 Authentication required; check smtp_user"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := testenv.NewSMTP(t, c.server)
			s := taskdb.MailSettings{Host: server.Host, Port: server.Port, User: c.user, Password: c.pass, From: "agent@example.com"}
			tr := Transport{TLS: c.tls}
			if c.trust {
				var err error
				if tr.CAFile, err = server.WriteCA(t.TempDir()); err != nil {
					t.Fatal(err)
				}
			}
			retry, err := sendMail(t.Context(), s, tr)
			mails := server.Mails()
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), server.Addr()) {
					t.Fatalf("error is %v; want %q and the address in it", err, c.want)
				}
				if !retry {
					t.Error("what can be mended is final")
				}
				if strings.Contains(err.Error(), password) || len(mails) != 0 {
					t.Errorf("%d mails; error %v", len(mails), err)
				}
				if cerr := Check(t.Context(), s, tr); c.name != "login missing" && (cerr == nil || cerr.Error() != err.Error()) {
					t.Errorf("check says %v, send says %v", cerr, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(mails) != 1 || mails[0].TLS != c.encrypted || mails[0].User != c.user {
				t.Errorf("got %d mails, %+v", len(mails), mails)
			}
			if err := Check(t.Context(), s, tr); err != nil {
				t.Error(err)
			}
			if n := len(server.Mails()); n != 1 {
				t.Errorf("check sent %d mails", n-1)
			}
		})
	}
}

func TestRoute(t *testing.T) {
	for _, c := range []struct {
		host string
		port int
		tls  TLSMode
		addr string
		mode TLSMode // "" is refused
	}{
		{"mail.example.com", 0, TLSAuto, "mail.example.com:587", TLSStartTLS},
		{"mail.example.com", 25, "", "mail.example.com:25", TLSStartTLS},
		{"mail.example.com", 465, TLSAuto, "mail.example.com:465", TLSImplicit},
		{"mail.example.com", 0, TLSImplicit, "mail.example.com:465", TLSImplicit},
		{"mail.example.com", 465, TLSStartTLS, "mail.example.com:465", TLSStartTLS},
		{"mail.example.com", 25, TLSNone, "", ""},
		{"10.0.0.1", 25, TLSNone, "", ""},
		{"localhost.example.com", 25, TLSAuto, "localhost.example.com:25", TLSStartTLS},
		{"localhost", 25, TLSAuto, "localhost:25", TLSAuto},
		{" 127.3.2.1 ", 25, TLSAuto, "127.3.2.1:25", TLSAuto},
		{"::1", 25, TLSAuto, "[::1]:25", TLSAuto},
		{"[::1]", 25, TLSNone, "[::1]:25", TLSNone},
		{"localhost", 465, TLSAuto, "localhost:465", TLSImplicit},
		{"localhost", 25, "ssl", "", ""},
	} {
		r, err := Transport{TLS: c.tls}.route(taskdb.MailSettings{Host: c.host, Port: c.port})
		if (err != nil) != (c.mode == "") || err == nil && (r.mode != c.mode || r.addr != c.addr) {
			t.Errorf("%s port %d with %q: got %+v, %v", c.host, c.port, c.tls, r, err)
		}
	}
}

func TestOnlyLoopbackIsLocal(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.8.7.6": true, "::1": true, "::ffff:127.0.0.1": true,
		"10.0.0.1": false, "192.0.2.1": false, "fe80::1": false, "0.0.0.0": false,
	} {
		if got := local(&net.TCPAddr{IP: net.ParseIP(addr)}); got != want {
			t.Errorf("%s: got %v", addr, got)
		}
	}
	if local(&net.UnixAddr{}) {
		t.Error("what is no TCP address counts as local")
	}
}

func TestDefect23RefusalsAreRetriedOrFinal(t *testing.T) {
	for _, c := range []struct {
		verb  string
		code  int
		retry bool
	}{
		{"MAIL", 451, true},
		{"MAIL", 421, true},
		{"MAIL", 550, false},
		{"MAIL", 535, true}, // about the login, which can be mended
		{"RCPT", 450, true},
		{"RCPT", 550, false},
		{"RCPT", 553, false},
		{"DATA", 452, true},
		{"DATA", 554, false},
		{"AUTH", 454, true},
		{"AUTH", 535, true},
	} {
		t.Run(fmt.Sprint(c.verb, c.code), func(t *testing.T) {
			server := testenv.NewSMTP(t, testenv.SMTPOptions{User: "agent", Password: password})
			server.Refuse(testenv.Refusal{Verb: c.verb, Code: c.code})
			s := taskdb.MailSettings{Host: server.Host, Port: server.Port, User: "agent", Password: password, From: "agent@example.com"}
			retry, err := sendMail(t.Context(), s, Transport{})
			if err == nil || retry != c.retry || !strings.Contains(err.Error(), fmt.Sprint(c.code)) {
				t.Errorf("retry %v, error %v", retry, err)
			}
			if len(server.Mails()) != 0 {
				t.Error("a mail was accepted")
			}
		})
	}
}

// A domain outside ASCII goes as DNS has it. What is before the @ has no such form: it
// is for servers that take it, and otherwise ends that recipient's mail alone.
func TestAddressesOutsideASCII(t *testing.T) {
	for _, c := range []struct {
		address, want string // the address as the server hears it, or a part of the error
		utf8          bool   // the server takes such addresses
	}{
		{"ada@bücher.example", "ada@xn--bcher-kva.example", false},
		{"ada@bücher.example", "ada@xn--bcher-kva.example", true},
		{"äda@bücher.example", "äda@xn--bcher-kva.example", true},
		{"äda@example.com", "its part before the @ is outside ASCII, which this server does not take (SMTPUTF8); give this administrator another address", false},
		{"ada@-ü-.example", "its domain is none", false},
	} {
		server := testenv.NewSMTP(t, testenv.SMTPOptions{UTF8: c.utf8})
		s := taskdb.MailSettings{Host: server.Host, Port: server.Port, From: "agent@example.com"}
		retry, err := (&Channel{settings: s}).Send(t.Context(), notifier.Message{
			Recipient: notifier.Recipient{Address: c.address}, ID: "id@example.com", Date: time.Now(), Content: notifier.Content{Text: "text", HTML: "text"},
		})
		mails := server.Mails()
		switch {
		case len(mails) == 1 && err == nil:
			if mails[0].To[0] != c.want {
				t.Errorf("%s: to %q", c.address, mails[0].To)
			}
		case err == nil || retry || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %d mails, retry %v, error %v", c.address, len(mails), retry, err)
		}
	}
}

// A token from the token's server takes the place of the password. It is kept until
// it expires or is refused.
func TestLoginByOAuth(t *testing.T) {
	server := testenv.NewSMTP(t, testenv.SMTPOptions{User: "agent@example.com", Password: "token-2", Mechanisms: []string{"LOGIN", "XOAUTH2"}})
	var asked atomic.Int32
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("grant_type") != "client_credentials" || r.FormValue("client_id") != "app" || r.FormValue("scope") != "mail" || r.FormValue("client_secret") != password {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error": "invalid_client", "error_description": "AADSTS7000215: not %s"}`, r.FormValue("client_secret"))
			return
		}
		fmt.Fprintf(w, `{"token_type": "Bearer", "access_token": "token-%d", "expires_in": 3599}`, asked.Add(1))
	}))
	defer tokens.Close()
	s := taskdb.MailSettings{Host: server.Host, Port: server.Port, From: "agent@example.com"}
	tr := Transport{OAuth: &OAuth{TokenURL: tokens.URL, ClientID: "app", Secret: password, Scope: "mail"}}
	retry, err := sendMail(t.Context(), s, tr)
	if err == nil || !retry || !strings.Contains(err.Error(), "the token is valid, but not for this mailbox") || strings.Contains(err.Error(), "token-1") {
		t.Errorf("with a token that the mail server refuses: retry %v, %v", retry, err)
	}
	for range 2 {
		if _, err := sendMail(t.Context(), s, tr); err != nil {
			t.Fatal(err)
		}
	}
	if mails := server.Mails(); len(mails) != 2 || mails[0].User != "agent@example.com" || asked.Load() != 2 {
		t.Errorf("%d mails with %d tokens: %+v", len(mails), asked.Load(), mails)
	}
	tr.OAuth.expires = time.Now().Add(tokenMargin / 2)
	if err := Check(t.Context(), s, tr); err == nil || asked.Load() != 3 {
		t.Errorf("a token that is about to expire: %d were asked for, %v", asked.Load(), err)
	}
	for _, c := range []struct {
		oauth *OAuth
		want  string
	}{
		{&OAuth{TokenURL: tokens.URL, ClientID: "app", Secret: "wrong-one", Scope: "mail"}, "401 invalid_client: AADSTS7000215: not ***; check notify.oauth_client_id"},
		{&OAuth{TokenURL: "http://login.example.com/token", ClientID: "app", Secret: password}, "never sent in the clear to another host"},
		{&OAuth{TokenURL: "http://127.0.0.1:1/token", ClientID: "app", Secret: password}, "connection refused; check notify.oauth_token_url"},
	} {
		retry, err := sendMail(t.Context(), s, Transport{OAuth: c.oauth})
		if err == nil || !retry || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), c.oauth.Secret) {
			t.Errorf("%s: retry %v, %v", c.oauth.TokenURL, retry, err)
		}
	}
	// Exchange Online says so when it is given a password.
	s = scripted(t, func(c net.Conn, r *bufio.Reader) {
		take(c, r, func(l string) string {
			if strings.HasPrefix(l, "AUTH") {
				return "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.\r\n"
			}
			return ""
		})
	})
	s.User, s.Password = "agent@example.com", password
	if _, err := sendMail(t.Context(), s, Transport{}); err == nil || !strings.Contains(err.Error(), "set notify.oauth_token_url, notify.oauth_client_id and notify.oauth_client_secret") {
		t.Errorf("a server that takes no passwords: %v", err)
	}
}

// scripted returns settings of a server that does what serve does with its one
// client.
func scripted(t *testing.T, serve func(net.Conn, *bufio.Reader)) taskdb.MailSettings {
	t.Helper()
	return taskdb.MailSettings{Host: "127.0.0.1", Port: testenv.ServeTCP(t, serve), From: "agent@example.com"}
}

// swallow is a reply that is never sent.
const swallow = "swallow"

// take speaks SMTP as far as the client asks; reply may answer a command in
// its own way.
func take(c net.Conn, r *bufio.Reader, reply func(command string) string) {
	fmt.Fprint(c, "220 scripted\r\n")
	for {
		l, err := r.ReadString('\n')
		if err != nil {
			return
		}
		l = strings.TrimSpace(l)
		if own := reply(l); own == swallow {
			continue
		} else if own != "" {
			fmt.Fprint(c, own)
			continue
		}
		switch verb, _, _ := strings.Cut(l, " "); verb {
		case "EHLO":
			fmt.Fprint(c, "250-scripted\r\n250 AUTH PLAIN LOGIN\r\n")
		case "DATA":
			fmt.Fprint(c, "354 go on\r\n")
			for l != ".\r\n" {
				if l, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			fmt.Fprint(c, "250 taken\r\n")
		default:
			fmt.Fprint(c, "250 ok\r\n")
		}
	}
}

func TestServersThatMisbehave(t *testing.T) {
	silent := func(net.Conn, *bufio.Reader) {}
	for _, c := range []struct {
		name  string
		serve func(net.Conn, *bufio.Reader)
		user  string
		want  string // "" is delivered
	}{
		{name: "never speaks", serve: silent, want: `wait for the greeting of 127.0.0.1:PORT: no answer within WAIT; check smtp_host and smtp_port in deployment_config and the firewall; if this port speaks TLS`},
		{name: "hangs up", serve: func(c net.Conn, _ *bufio.Reader) { _ = c.Close() }, want: "the server closed the connection"},
		{name: "refuses everybody", serve: func(c net.Conn, _ *bufio.Reader) { fmt.Fprint(c, "554 go away\r\n") }, want: "the server answered 554 go away"},
		{name: "is not a mail server", serve: func(c net.Conn, _ *bufio.Reader) { fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n") }, want: "short response: \"HTTP/1.1"},
		{name: "stops after the greeting", serve: func(c net.Conn, _ *bufio.Reader) { fmt.Fprint(c, "220 hello\r\n") }, want: "introduce ourselves to 127.0.0.1:PORT: no answer"},
		{name: "never stops talking", serve: func(c net.Conn, _ *bufio.Reader) {
			for {
				if _, err := fmt.Fprint(c, "220-", strings.Repeat("x", 1<<16), "\r\n"); err != nil {
					return
				}
			}
		}, want: "does not stop talking"},
		{name: "repeats the password", user: "agent", serve: func(c net.Conn, r *bufio.Reader) {
			take(c, r, func(l string) string {
				_, told, ok := strings.Cut(l, "AUTH PLAIN ")
				if !ok {
					return ""
				}
				decoded, _ := base64.StdEncoding.DecodeString(told)
				return fmt.Sprintf("535 no: %s is %s\r\n", told, strings.ReplaceAll(string(decoded), "\x00", " "))
			})
		}, want: "535 no: *** is  agent ***; check smtp_user"},
		{name: "hangs up instead of goodbye", serve: func(c net.Conn, r *bufio.Reader) {
			take(c, r, func(l string) string {
				if l == "QUIT" {
					_ = c.Close()
				}
				return ""
			})
		}},
		{name: "refuses the goodbye", serve: func(c net.Conn, r *bufio.Reader) {
			take(c, r, func(l string) string {
				if l == "QUIT" || l == "RSET" {
					return "500 what\r\n"
				}
				return ""
			})
		}},
		{name: "never answers the mail", serve: func(c net.Conn, r *bufio.Reader) {
			take(c, r, func(l string) string {
				if l == "DATA" {
					return "354 go on\r\n"
				}
				if !strings.HasPrefix(l, "EHLO") && !strings.HasPrefix(l, "MAIL") && !strings.HasPrefix(l, "RCPT") {
					return swallow
				}
				return ""
			})
		}, want: "wait until 127.0.0.1:PORT has taken the mail for ada@example.com: no answer within WAIT; it may have taken the mail all the same"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := scripted(t, c.serve)
			s.User, s.Password = c.user, password
			t.Parallel()
			// What comes before must fit into it on a busy machine.
			tr := Transport{Timeout: 5 * time.Second, accept: 5 * time.Second}
			if !strings.Contains(c.want, "no answer") || strings.Contains(c.want, "has taken") {
				tr.Timeout = 0 // which is the default
			}
			retry, err := sendMail(t.Context(), s, tr)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			want := strings.NewReplacer("PORT", fmt.Sprint(s.Port), "WAIT", tr.accept.String()).Replace(c.want)
			if err == nil || !retry || !strings.Contains(err.Error(), want) {
				t.Errorf("retry %v, error %v; want %q", retry, err, want)
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(garbage, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	local := taskdb.MailSettings{Host: "127.0.0.1", Port: free, From: "agent@example.com"}
	for _, c := range []struct {
		s    taskdb.MailSettings
		tr   Transport
		want string
	}{
		{local, Transport{}, "connection refused; check smtp_host and smtp_port"},
		{local, Transport{CAFile: garbage}, "it holds no PEM certificate"},
		{local, Transport{CAFile: garbage + ".not"}, "read notify.ca_file: open " + garbage + ".not"},
		{taskdb.MailSettings{Host: "10.0.0.1", From: "a@b.c"}, Transport{TLS: TLSNone}, `set notify.tls = "auto"`},
		{taskdb.MailSettings{Host: "bad host\r\nname", From: "a@b.c"}, Transport{TLS: TLSAuto}, "correct smtp_host and smtp_port"},
		{taskdb.MailSettings{Host: "mail.example.com:587", From: "a@b.c"}, Transport{}, `smtp_host is "mail.example.com:587", which is more than a name or an address; set smtp_host to mail.example.com and smtp_port to 587`},
		{taskdb.MailSettings{Host: " 10.0.0.1:25 ", Port: 25, From: "a@b.c"}, Transport{}, "set smtp_host to 10.0.0.1 and smtp_port to 25"},
		{taskdb.MailSettings{Host: "[::1]:25", From: "a@b.c"}, Transport{}, "set smtp_host to ::1 and smtp_port to 25"},
		{taskdb.MailSettings{Host: "smtps://mail.example.com:465/", From: "a@b.c"}, Transport{}, "set smtp_host to mail.example.com and smtp_port to 465"},
		{taskdb.MailSettings{Host: "smtp://mail.example.com", From: "a@b.c"}, Transport{}, "set smtp_host to mail.example.com alone"},
		{taskdb.MailSettings{Host: "::1", Port: free, From: "a@b.c"}, Transport{}, "check smtp_host and smtp_port"},
		{taskdb.MailSettings{Host: "[::1]", Port: free, From: "a@b.c"}, Transport{}, "check smtp_host and smtp_port"},
		{taskdb.MailSettings{Host: "localhost", Port: 70000, From: "a@b.c"}, Transport{TLS: TLSAuto}, "correct smtp_host and smtp_port"},
	} {
		err := Check(t.Context(), c.s, c.tr)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("%v: error is %v; want %q on one line", c.s, err, c.want)
		}
	}
	if err := Check(t.Context(), taskdb.MailSettings{}, Transport{}); !errors.Is(err, ErrNotConfigured) {
		t.Error(err)
	}
}
