package notifier

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/mail"
	"net/textproto"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// letter is one mail to one recipient.
type letter struct {
	To        *mail.Address
	MessageID string // without angle brackets
	Date      time.Time
	Content
}

// compose makes the message. Header values are encoded by go-mail; no header's
// name comes from outside.
func compose(l letter, from *mail.Address) *gomail.Msg {
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	m.FromMailAddress(from)
	m.ToMailAddress(l.To)
	m.Subject(l.Subject)
	m.SetDateWithValue(l.Date)
	m.SetMessageIDWithValue(l.MessageID)
	// No vacation notice is wanted in answer (RFC 3834; the second is for Exchange).
	m.SetGenHeader("Auto-Submitted", "auto-generated")
	m.SetGenHeader(gomail.HeaderXAutoResponseSuppress, "All")
	m.SetBodyString(gomail.TypeTextPlain, l.Text)
	m.AddAlternativeString(gomail.TypeTextHTML, l.HTML)
	return m
}

// messageID returns the Message-ID of the mail that tells one recipient about
// one outcome: always the same, so that a repeat after a crash is recognised.
func messageID(o task.Outcome, recipient string, from *mail.Address) string {
	h := sha256.New()
	for _, part := range []string{string(o.TaskID), string(o.Token), string(o.Notice()), strings.ToLower(recipient)} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:20]) + "@" + domain(from)
}

func domain(a *mail.Address) string {
	d := a.Address[strings.LastIndexByte(a.Address, '@')+1:]
	if d == "" || strings.ContainsFunc(d, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("<>[]", r) }) {
		return "wrktalk-agent.invalid"
	}
	return d
}

// send delivers one letter. An error comes with whether another attempt can
// help: a server that refuses this mail for good (5xx) is final, everything
// that may pass or be mended is not. A mail counts as delivered once the
// server took it, whatever happens after.
func send(ctx context.Context, s Settings, t Transport, l letter) (retry bool, err error) {
	err = deliver(ctx, s, t, l)
	if err == nil {
		return false, nil
	}
	var e *sendError
	return !errors.As(err, &e) || e.retry, err
}

func deliver(ctx context.Context, s Settings, t Transport, l letter) error {
	if !s.Configured() {
		return ErrNotConfigured
	}
	from, err := s.sender()
	if err != nil {
		return err
	}
	var message bytes.Buffer
	if _, err := compose(l, from).WriteTo(&message); err != nil {
		return fmt.Errorf("compose mail to %s: %w", l.To.Address, err)
	}
	c, err := t.open(ctx, s)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.transmit(from, l.To, message.Bytes()); err != nil {
		return c.judge(c.explain(err))
	}
	c.quit()
	return nil
}

// transmit hands the letter over. One recipient per transaction: a refused one
// would reset the mail for all.
func (c *conversation) transmit(from, to *mail.Address, message []byte) error {
	// Asking for SMTPUTF8 without need can make a mail undeliverable further on.
	c.client.SkipSMTPUTF8(ascii(from.Address) && ascii(to.Address))

	c.step("announce the sender " + from.Address + " to " + c.addr)
	if err := c.client.Mail(envelope(from)); err != nil {
		return err
	}
	c.step("name the recipient " + to.Address + " to " + c.addr)
	if err := c.client.Rcpt(envelope(to)); err != nil {
		return err
	}
	c.step("hand the mail for " + to.Address + " to " + c.addr)
	c.linger()
	w, err := c.client.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(message); err != nil {
		return err // not closed: the server must not take half a mail for a whole one
	}
	c.stepFor("wait until "+c.addr+" has taken the mail for "+to.Address, c.taking)
	return w.Close()
}

// judge makes an error final when the server refused the mail itself for good.
func (c *conversation) judge(err error) error {
	var e *sendError
	var reply *textproto.Error
	if errors.As(err, &e) && errors.As(e.err, &reply) && reply.Code >= 500 && !loginRefused(reply.Code) {
		e.retry = false
	}
	return err
}

func envelope(a *mail.Address) string { return (&mail.Address{Address: a.Address}).String() }

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > '~' })
}

// Check talks to the configured server as a send would, login included, and
// sends nothing. It returns ErrNotConfigured when there is no server.
func Check(ctx context.Context, s Settings, t Transport) error {
	if !s.Configured() {
		return ErrNotConfigured
	}
	if _, err := s.sender(); err != nil {
		return err
	}
	c, err := t.open(ctx, s)
	if err != nil {
		return err
	}
	defer c.close()
	c.quit()
	return nil
}

// SendTest sends a mail that says it is a test to one address.
func SendTest(ctx context.Context, s Settings, t Transport, origin Origin, address string) error {
	to, err := parseAddress(address)
	if err != nil {
		return fmt.Errorf("send test mail to %q: %w", word(address, ""), err)
	}
	if !s.Configured() {
		return ErrNotConfigured
	}
	from, err := s.sender()
	if err != nil {
		return err
	}
	r, err := t.route(s)
	if err != nil {
		return err
	}
	now := time.Now()
	content, err := renderTest(origin, r.addr, now)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(now.Format(time.RFC3339Nano) + to.Address + origin.Host))
	return deliver(ctx, s, t, letter{
		To: to, Date: now, Content: content,
		MessageID: hex.EncodeToString(sum[:20]) + "@" + domain(from),
	})
}
