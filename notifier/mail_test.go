package notifier_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/notifier"
	"github.com/wrktalk/wrktalk-agent/notifier/smtp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// parsed is a mail as a reader's program sees it.
type parsed struct {
	header mail.Header
	text   string
	html   string
}

// parse takes a mail apart and insists on its structure: two alternatives,
// plain text first, each UTF-8 and quoted-printable.
func parse(t *testing.T, raw []byte) parsed {
	t.Helper()
	for l := range bytes.Lines(raw) {
		if !bytes.HasSuffix(l, []byte("\r\n")) || len(l) > 1000 {
			t.Errorf("line %.60q breaks RFC 5322", l)
		}
		if i := bytes.IndexFunc(l, func(r rune) bool { return r > '~' }); i >= 0 {
			t.Errorf("line %.60q is not 7 bit", l)
		}
	}
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("parse mail: %v\n%s", err, raw)
	}
	media, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || media != "multipart/alternative" {
		t.Fatalf("content type is %q (%v)", media, err)
	}
	p := parsed{header: m.Header}
	parts := multipart.NewReader(m.Body, params["boundary"])
	for i, want := range []string{"text/plain", "text/html"} {
		part, err := parts.NextRawPart()
		if err != nil {
			t.Fatalf("part %d: %v", i, err)
		}
		if enc := part.Header.Get("Content-Transfer-Encoding"); enc != "quoted-printable" {
			t.Errorf("part %d is encoded as %q", i, enc)
		}
		if ct := part.Header.Get("Content-Type"); ct != want+"; charset=UTF-8" {
			t.Errorf("part %d is %q", i, ct)
		}
		body, err := io.ReadAll(quotedprintable.NewReader(part))
		if err != nil {
			t.Fatalf("part %d: %v", i, err)
		}
		s := strings.ReplaceAll(string(body), "\r\n", "\n")
		if i == 0 {
			p.text = s
		} else {
			p.html = s
		}
	}
	if _, err := parts.NextRawPart(); err != io.EOF {
		t.Errorf("after the two parts comes %v", err)
	}
	return p
}

// golden compares the mail with the files of that name.
func golden(t *testing.T, name string, p parsed) {
	t.Helper()
	var head strings.Builder
	var names []string
	for k := range p.header {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		for _, v := range p.header[k] {
			if k == "Content-Type" {
				v, _, _ = strings.Cut(v, " boundary=") // random, so that no body can guess it
			}
			fmt.Fprintf(&head, "%s: %s\n", k, v)
		}
	}
	for file, got := range map[string]string{name + ".txt": head.String() + "\n" + p.text, name + ".html": p.html} {
		path := filepath.Join("testdata", file)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs (run go test -update and look at the diff); got\n%s", path, got)
		}
	}
}

var (
	started = time.Date(2026, 11, 23, 13, 39, 15, 0, time.UTC)
	origin  = notifier.Origin{Host: "prod-1.example.com", Target: "Compose project wrktalk"}
	admin   = &mail.Address{Name: "Ada Admin", Address: "ada@example.com"}
)

// outcomes are one of each kind of mail.
func outcomes() map[string]task.Outcome {
	base := task.Outcome{
		Schema: task.OutcomeSchema, TaskID: "1397f0f1-8c1e-4c8e-9a51-3f0f6c8b9d42", Token: "2026-11-23 13:39:15.123456+00",
		Kind: task.KindDeploy, ReleaseVersion: "2.5.0", ChartType: task.ChartCompose,
		StartedAt: started, FinishedAt: started.Add(65 * time.Second),
	}
	with := func(change func(*task.Outcome)) task.Outcome {
		o := base
		change(&o)
		return o
	}
	return map[string]task.Outcome{
		"success": with(func(o *task.Outcome) {
			o.Succeeded, o.Serving = true, "2.5.0"
			o.Message = "all 4 services are healthy"
		}),
		"success-helm": with(func(o *task.Outcome) {
			o.Succeeded, o.Serving, o.ChartType, o.HelmRevision = true, "2.5.0", task.ChartHelm, 7
			o.Message = "release wrktalk was upgraded"
		}),
		"failed-restored": with(func(o *task.Outcome) {
			o.Serving, o.Restored = "2.4.1", true
			o.Message = "the release did not come up"
			o.Error = "wait for service api: container wrktalk-api-1 is unhealthy after 2m0s: " +
				"probe curl -fsS http://localhost:8080/healthz exited with 7"
			o.LogTail = []string{
				"Container wrktalk-db-1  Healthy",
				"Container wrktalk-api-1  Started",
				"api-1  | panic: connect to redis://cache:6379: no such host",
				"api-1  |     at main.go:42",
				"Container wrktalk-api-1  Error",
			}
		}),
		"failed": with(func(o *task.Outcome) {
			o.Message = "the release did not come up, and neither did the previous one"
			o.Error = "pull image registry.example.com/wrktalk/api:2.5.0: manifest unknown"
			o.FinishedAt = started.Add(850 * time.Millisecond)
		}),
		"failed-unknown": with(func(o *task.Outcome) {
			o.Kind, o.ReleaseVersion, o.ChartType, o.Serving = "frobnicate", "", "", "2.4.1"
			o.Message = "the task was refused"
			o.Error = `task type "frobnicate" is unknown; this agent knows deploy and rollback`
			o.FinishedAt = started
		}),
		"rollback-success": with(func(o *task.Outcome) {
			o.Kind, o.Succeeded, o.ReleaseVersion, o.Serving = task.KindRollback, true, "2.4.1", "2.4.1"
			o.FinishedAt = started.Add(12 * time.Second)
		}),
		"rollback-failed": with(func(o *task.Outcome) {
			o.Kind, o.ReleaseVersion, o.Serving = task.KindRollback, "2.4.1", "2.5.0"
			o.Message = "nothing was changed"
			o.Error = "roll back to 2.4.1: its bundle is gone from the working directory; push the release again"
			o.FinishedAt = started.Add(3*time.Hour + 125*time.Second)
		}),
		// What a hostile or broken program can put into an outcome.
		"hostile": with(func(o *task.Outcome) {
			o.TaskID = "7; rm -rf $HOME"
			o.ReleaseVersion = "2.5.0\r\nBcc: everyone@example.com\r\n\r\n<script>alert(1)</script>"
			o.Serving = "<b>2.4.1</b>\x00\x1b[31m"
			o.Message = "done</p><img src=http://evil.example/x.png onerror=alert(1)>"
			o.Error = "line one\r\n.\r\nQUIT\r\n\x1b[1;31mred\x1b[0m \u202egnp.exe\u202c <a href=\"javascript:alert(1)\">x</a> \xff\xfe"
			o.LogTail = []string{
				"</pre><script src=\"https://evil.example/x.js\"></script>",
				"--boundary\r\nContent-Type: text/html\r\n\r\n<h1>owned</h1>",
				".", "..", "From nobody", "  \tindented \x07 bell", strings.Repeat("x", 3000), "naïve — 日本語",
				"{{.Cause}} ${jndi:ldap://x}",
			}
		}),
	}
}

func TestEveryNoticeIsAMailWorthReading(t *testing.T) {
	server := testenv.NewSMTP(t, testenv.SMTPOptions{})
	settings := taskdb.MailSettings{Host: server.Host, Port: server.Port, From: "WrkTalk Agent <agent@example.com>"}
	for name, o := range outcomes() {
		t.Run(name, func(t *testing.T) {
			before := len(server.Mails())
			if _, err := sendOutcome(t.Context(), settings, o, admin); err != nil {
				t.Fatal(err)
			}
			mails, err := server.Await(t.Context(), before+1)
			if err != nil {
				t.Fatal(err)
			}
			m := mails[before]
			if m.From != "agent@example.com" || !slices.Equal(m.To, []string{"ada@example.com"}) {
				t.Errorf("envelope is from %q to %q", m.From, m.To)
			}
			p := parse(t, m.Raw)
			golden(t, name, p)
			harmless(t, p)
			if again, _ := notifier.Render(o, origin); again.HTML != p.html || again.Text != p.text {
				t.Error("rendering again gives another mail")
			}
			if !strings.Contains(p.text, string(o.TaskID)) || !strings.Contains(p.html, string(o.TaskID)) {
				t.Error("the mail does not name the task")
			}
		})
	}
}

// harmless insists that nothing in the mail acts: no script, no remote content,
// no header that is not ours, no control characters.
func harmless(t *testing.T, p parsed) {
	t.Helper()
	known := []string{
		"Auto-Submitted", "Content-Type", "Date", "From", "Message-Id", "Mime-Version", "Subject", "To", "X-Auto-Response-Suppress",
	}
	for k, v := range p.header {
		if !slices.Contains(known, k) || len(v) != 1 {
			t.Errorf("header %s: %q", k, v)
		}
	}
	for _, bad := range []string{"<script", "<img", "<a ", "<b>", "<link", "@import", "url(", "http-equiv", "</pre><"} {
		if strings.Contains(strings.ToLower(p.html), bad) {
			t.Errorf("the HTML contains %q", bad)
		}
	}
	for _, s := range []string{p.text, p.html} {
		if i := strings.IndexFunc(s, func(r rune) bool {
			return r < ' ' && r != '\n' || r == 0x7f || r == '\u202e' || r == 0x1b
		}); i >= 0 {
			t.Errorf("control character in %q", s[i:min(len(s), i+20)])
		}
	}
}

// sendOutcome sends what the loop would send.
func sendOutcome(ctx context.Context, s taskdb.MailSettings, o task.Outcome, to *mail.Address) (bool, error) {
	content, err := notifier.Render(o, origin)
	if err != nil {
		return false, err
	}
	c, err := smtp.Register(func(context.Context) (taskdb.MailSettings, error) { return s, nil }, nil, smtp.Transport{}).Open(ctx)
	if err != nil {
		return false, err
	}
	return c.Send(ctx, notifier.Message{
		Recipient: notifier.Recipient{Name: to.Name, Address: to.Address},
		ID:        notifier.MessageIDOf(o, to.Address, "example.com"), Date: o.FinishedAt, Content: content,
	})
}

func TestAddressesCannotInject(t *testing.T) {
	server := testenv.NewSMTP(t, testenv.SMTPOptions{})
	o := outcomes()["success"]
	for _, from := range []string{"Evil\r\nBcc: x@example.com <a@example.com>", "a@example.com\r\nX: y", "nobody"} {
		retry, err := sendOutcome(t.Context(), taskdb.MailSettings{Host: server.Host, Port: server.Port, From: from}, o, admin)
		if err == nil || !retry || !strings.Contains(err.Error(), "smtp_from") {
			t.Errorf("from %q: retry %v, error %v", from, retry, err)
		}
	}
	// A name may hold anything printable; it is encoded.
	to := &mail.Address{Name: notifier.OneLine("Zoë \"Q\" <x@evil.example>,\r\nBcc: y"), Address: "ada@example.com"}
	settings := taskdb.MailSettings{Host: server.Host, Port: server.Port, From: "Ünïcode <agent@example.com>"}
	if _, err := sendOutcome(t.Context(), settings, o, to); err != nil {
		t.Fatal(err)
	}
	mails, err := server.Await(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	p := parse(t, mails[0].Raw)
	harmless(t, p)
	list, err := p.header.AddressList("To")
	if err != nil || len(list) != 1 || list[0].Address != "ada@example.com" {
		t.Errorf("To is %v (%v)", list, err)
	}
	if from, err := p.header.AddressList("From"); err != nil || from[0].Name != "Ünïcode" {
		t.Errorf("From is %v (%v)", from, err)
	}
}

func TestMessageIDTellsMailsApart(t *testing.T) {
	o := outcomes()["success"]
	id := notifier.MessageIDOf(o, "ada@example.com", "example.com")
	if id != notifier.MessageIDOf(o, "ADA@example.com", "example.com") {
		t.Error("the case of the address changes the Message-ID")
	}
	later, other := o, o
	later.Token = "another claim"
	other.Succeeded = false
	for name, x := range map[string]string{
		"recipient": notifier.MessageIDOf(o, "bob@example.com", "example.com"),
		"claim":     notifier.MessageIDOf(later, "ada@example.com", "example.com"),
		"notice":    notifier.MessageIDOf(other, "ada@example.com", "example.com"),
	} {
		if x == id {
			t.Errorf("another %s has the same Message-ID", name)
		}
	}
	if got := notifier.MessageIDOf(o, "ada@example.com", ""); !strings.HasSuffix(got, "@wrktalk-agent.invalid") {
		t.Errorf("Message-ID is %q", got)
	}
}

func TestSendTest(t *testing.T) {
	server := testenv.NewSMTP(t, testenv.SMTPOptions{Dir: t.TempDir()})
	s := taskdb.MailSettings{Host: server.Host, Port: server.Port, From: "agent@example.com"}
	if err := smtp.SendTest(t.Context(), s, smtp.Transport{}, origin, "Bob <bob@example.com>"); err != nil {
		t.Fatal(err)
	}
	m := server.Mails()[0]
	p := parse(t, m.Raw)
	harmless(t, p)
	if got := p.header.Get("Subject"); got != "[WrkTalk] TEST: mail from prod-1.example.com arrives" {
		t.Errorf("subject is %q", got)
	}
	if a, err := mail.ParseAddress(p.header.Get("To")); err != nil || a.Address != "bob@example.com" || m.To[0] != a.Address {
		t.Errorf("to %v, envelope %v (%v)", a, m.To, err)
	}
	for _, want := range []string{"Nothing was deployed", server.Addr()} {
		if !strings.Contains(p.text, want) || !strings.Contains(p.html, want) {
			t.Errorf("the mail does not say %q", want)
		}
	}
	if err := smtp.SendTest(t.Context(), s, smtp.Transport{}, origin, "nobody"); err == nil {
		t.Error("a test to no address succeeds")
	}
	if err := smtp.SendTest(t.Context(), taskdb.MailSettings{}, smtp.Transport{}, origin, "bob@example.com"); !errors.Is(err, smtp.ErrNotConfigured) {
		t.Error(err)
	}
}
