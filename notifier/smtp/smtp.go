// Package smtp is the channel that mails active administrators, through the
// mail server that deployment_config names.
//
// smtp.go is the channel, settings.go what it is given, session.go watches the
// one connection of each mail, explain.go says what errors mean.
package smtp

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"net/textproto"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// Channel sends mail through one server.
type Channel struct {
	settings  taskdb.MailSettings
	transport Transport
	admins    func(context.Context) ([]taskdb.Admin, error)
}

// Register returns what the notifier needs to send mail: settings and admins
// return the settings of deployment_config and the active administrators, and
// are asked anew each time.
func Register(
	settings func(context.Context) (taskdb.MailSettings, error),
	admins func(context.Context) ([]taskdb.Admin, error), t Transport,
) notifier.Registration {
	return notifier.Registration{
		Name: "smtp", Noun: "mail",
		Open: func(ctx context.Context) (notifier.Channel, error) {
			s, err := settings(ctx)
			if err != nil {
				return nil, fmt.Errorf("read mail settings: %w", err)
			}
			if !configured(s) {
				return nil, &notifier.NothingToSend{
					Note: "no mail server is configured in deployment_config",
					Log:  "no mail is sent: set smtp_host in deployment_config to get it",
				}
			}
			return &Channel{settings: s, transport: t, admins: admins}, nil
		},
	}
}

// Recipients returns the administrators that are active now.
func (c *Channel) Recipients(ctx context.Context) ([]notifier.Recipient, error) {
	admins, err := c.admins(ctx)
	if err != nil {
		return nil, fmt.Errorf("read active administrators: %w", err)
	}
	if len(admins) == 0 {
		return nil, &notifier.NothingToSend{
			Note: "there is no active administrator",
			Log:  "no mail is sent: table admin has no active administrator",
		}
	}
	var idDomain string
	if from, err := sender(c.settings); err == nil { // else each attempt says so
		idDomain = domain(from)
	}
	recipients := make([]notifier.Recipient, 0, len(admins))
	for _, admin := range admins {
		r := notifier.Recipient{Name: notifier.Label(admin.Name, ""), IDDomain: idDomain}
		if a, err := parseAddress(admin.Email); err != nil {
			r.Address = notifier.Label(admin.Email, "(empty)")
			r.Err = fmt.Errorf("not a mail address: %w", err)
		} else {
			r.Address = a.Address
			if r.Name == "" {
				r.Name = notifier.Label(a.Name, "")
			}
		}
		recipients = append(recipients, r)
	}
	return recipients, nil
}

// Send delivers one mail. A server that refuses the mail itself for good (5xx)
// is final, everything that may pass or be mended is not. A mail counts as
// delivered once the server took it, whatever happens after.
func (c *Channel) Send(ctx context.Context, m notifier.Message) (retry bool, err error) {
	err = deliver(ctx, c.settings, c.transport, m)
	if err == nil {
		return false, nil
	}
	var e *sendError
	return !errors.As(err, &e) || e.retry, err
}

func deliver(ctx context.Context, s taskdb.MailSettings, t Transport, m notifier.Message) error {
	from, err := sender(s)
	if err != nil {
		return err
	}
	to := &mail.Address{Name: m.Recipient.Name}
	if to.Address, err = asciiDomain(m.Recipient.Address); err != nil {
		return &sendError{action: "name the recipient " + m.Recipient.Address, reason: plainError(err), err: err}
	}
	d, err := connect(ctx, s, t, from, to)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.takesAddresses(); err != nil {
		return err
	}
	message := compose(m, from, to)
	if err := d.client.Send(message); err != nil && !message.IsDelivered() {
		cause := d.cause(err)
		e := d.explain(cause)
		var reply *textproto.Error
		e.retry = !errors.As(cause, &reply) || reply.Code < 500 || loginRefused(reply.Code)
		return e
	}
	d.quit()
	return nil
}

// compose makes the message. Header values are encoded by go-mail; no header's
// name comes from outside. There is one recipient, because a refused one would
// reset the mail for all.
func compose(m notifier.Message, from, to *mail.Address) *gomail.Msg {
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	msg.FromMailAddress(from)
	msg.ToMailAddress(to)
	msg.Subject(m.Subject)
	msg.SetDateWithValue(m.Date)
	msg.SetMessageIDWithValue(m.ID)
	// No vacation notice is wanted in answer (RFC 3834; the second is for Exchange).
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.SetGenHeader(gomail.HeaderXAutoResponseSuppress, "All")
	msg.SetBodyString(gomail.TypeTextPlain, m.Text)
	msg.AddAlternativeString(gomail.TypeTextHTML, m.HTML)
	return msg
}

// domain returns the domain of a's address for a Message-ID, "" when it would
// break one.
func domain(a *mail.Address) string {
	d := a.Address[strings.LastIndexByte(a.Address, '@')+1:]
	if strings.ContainsFunc(d, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("<>[]", r) }) {
		return ""
	}
	return d
}

// Check talks to the configured server as a send would, login included, and
// sends nothing. It returns ErrNotConfigured when there is no server.
func Check(ctx context.Context, s taskdb.MailSettings, t Transport) error {
	if !configured(s) {
		return ErrNotConfigured
	}
	from, err := sender(s)
	if err != nil {
		return err
	}
	d, err := connect(ctx, s, t, from, from)
	if err != nil {
		return err
	}
	defer d.close()
	d.quit()
	return nil
}

// SendTest sends a mail that says it is a test to one address.
func SendTest(ctx context.Context, s taskdb.MailSettings, t Transport, origin notifier.Origin, address string) error {
	to, err := parseAddress(address)
	if err != nil {
		return fmt.Errorf("send test mail to %q: %w", notifier.Label(address, ""), err)
	}
	if !configured(s) {
		return ErrNotConfigured
	}
	from, err := sender(s)
	if err != nil {
		return err
	}
	r, err := t.route(s)
	if err != nil {
		return err
	}
	now := time.Now()
	content, err := notifier.RenderTest(origin, r.addr, now)
	if err != nil {
		return err
	}
	return deliver(ctx, s, t, notifier.Message{
		Recipient: notifier.Recipient{Name: to.Name, Address: to.Address}, Date: now, Content: content,
		ID: notifier.MessageID(domain(from), now.Format(time.RFC3339Nano), to.Address, origin.Host),
	})
}
