package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier/smtp"
)

// setupResult is what `setup --output json` prints.
type setupResult struct {
	NewRow      bool     `json:"new_row"` // of deployment_config
	Added       []string `json:"added,omitempty"`
	Reactivated []string `json:"reactivated,omitempty"`
	Host        string   `json:"smtp_host,omitempty"`
}

// setupCommand is `wrktalk-agent setup`.
func setupCommand(a *app) *cobra.Command {
	var admins []string
	var host, user, passwordFile, from string
	var port int
	c := &cobra.Command{
		Use: "setup", Short: "write deployment_config and administrators: whom to mail, through which server", Args: arguments(0, 0),
		Example: `  wrktalk-agent setup                       # asks
  wrktalk-agent setup --admin "Ann <ann@example.com>" --smtp-host mail.example.com \
    --smtp-user agent --smtp-password-file ./password --smtp-from deploy@example.com`,
	}
	a.outputFlag(c)
	c.Flags().StringArrayVar(&admins, "admin", nil, "mail this `address`; may be repeated")
	c.Flags().StringVar(&host, "smtp-host", "", "`name` of the mail server")
	c.Flags().IntVar(&port, "smtp-port", 0, "its `port`; 0 is 587, with STARTTLS")
	c.Flags().StringVar(&user, "smtp-user", "", "log in there under this `name`")
	c.Flags().StringVar(&passwordFile, "smtp-password-file", "", "read the password from this `file`")
	c.Flags().StringVar(&from, "smtp-from", "", "`address` to send from")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s := taskdb.Setup{}
		for name, to := range map[string]struct {
			field **string
			value *string
		}{"smtp-host": {&s.Host, &host}, "smtp-user": {&s.User, &user}, "smtp-from": {&s.From, &from}} {
			if c.Flags().Changed(name) {
				*to.field = new(strings.TrimSpace(*to.value))
			}
		}
		if c.Flags().Changed("smtp-port") {
			s.Port = &port
		}
		if passwordFile != "" {
			data, err := os.ReadFile(passwordFile)
			if err != nil {
				return usagef("read --smtp-password-file: %v", err)
			}
			s.Password = new(strings.TrimRight(string(data), "\r\n"))
		}
		for _, text := range admins {
			admin, err := parseAdmin(text)
			if err != nil {
				return usageError{err}
			}
			s.Admins = append(s.Admins, admin)
		}
		return a.setup(s)
	}
	return c
}

// parseAdmin reads an address, with or without a name before it.
func parseAdmin(text string) (taskdb.Admin, error) {
	address, err := mail.ParseAddress(text)
	if err != nil {
		return taskdb.Admin{}, fmt.Errorf("%q is no address of an administrator: write ann@example.com or \"Ann <ann@example.com>\"", text)
	}
	return taskdb.Admin{Name: address.Name, Email: address.Address}, nil
}

func (a *app) setup(s taskdb.Setup) error {
	return a.withDatabase(func(ctx context.Context, db *taskdb.DB, cfg *config.Config) error {
		target := deploymentOf(cfg).target
		if s.Host == nil && s.User == nil && s.Password == nil && s.From == nil && s.Port == nil && len(s.Admins) == 0 {
			in, ok := a.stdin.(*os.File)
			if !ok || !term.IsTerminal(int(in.Fd())) {
				return usagef("there is no terminal to ask on: say with --admin and --smtp-host what to write; see wrktalk-agent setup --help")
			}
			q := &questions{in: bufio.NewReader(in), out: a.stdout, secret: func() (string, error) {
				b, err := term.ReadPassword(int(in.Fd()))
				return string(b), err
			}}
			now, err := db.MailSettings(ctx, target)
			if err != nil {
				return err
			}
			admins, err := db.ActiveAdmins(ctx)
			if err != nil {
				return err
			}
			if s, err = q.ask(now, admins); err != nil {
				return err
			}
		}
		report, err := db.Setup(ctx, target, s)
		if err != nil {
			return err
		}
		settings, err := db.MailSettings(ctx, target)
		if err != nil {
			return err
		}
		if err := a.printSetup(report, target, settings); err != nil {
			return err
		}
		if err := smtp.Check(ctx, settings, transport(cfg)); err != nil && !errors.Is(err, smtp.ErrNotConfigured) {
			return fmt.Errorf("the settings are written, but: %w", err)
		}
		return nil
	})
}

func (a *app) printSetup(report *taskdb.SetupReport, target taskdb.Target, settings taskdb.MailSettings) error {
	if a.output == "json" {
		return a.printJSON(setupResult{NewRow: report.NewRow, Added: report.Added, Reactivated: report.Reactivated, Host: settings.Host})
	}
	if report.NewRow {
		fmt.Fprintf(a.stdout, "deployment_config has a row now: %s, %s\n", target.Deployment, target.Name)
	}
	for _, address := range report.Added {
		fmt.Fprintf(a.stdout, "%s is mailed from now on\n", address)
	}
	for _, address := range report.Reactivated {
		fmt.Fprintf(a.stdout, "%s was not active, and is mailed again\n", address)
	}
	if settings.Host == "" {
		fmt.Fprintln(a.stdout, "no mail is sent: smtp_host is empty")
		return nil
	}
	fmt.Fprintf(a.stdout, "mail goes through %s; try it with: wrktalk-agent notify-test ADDRESS\n", settings.Host)
	return nil
}

// questions asks a person on a terminal.
type questions struct {
	in     *bufio.Reader
	out    io.Writer
	secret func() (string, error) // reads a line that is not shown
}

// ask returns what a person wants to be changed of the settings.
func (q *questions) ask(now taskdb.MailSettings, admins []taskdb.Admin) (taskdb.Setup, error) {
	fmt.Fprintln(q.out, "Enter leaves what is in brackets as it is; - removes it.")
	var s taskdb.Setup
	var err error
	if s.Host, err = q.text("Mail server", now.Host); err != nil {
		return s, err
	}
	if s.Host == nil && now.Host != "" || s.Host != nil && *s.Host != "" {
		if s, err = q.server(s, now); err != nil {
			return s, err
		}
	}
	for _, admin := range admins {
		fmt.Fprintf(q.out, "%s is mailed.\n", admin.Email)
	}
	for {
		line, err := q.line("Another administrator to mail, such as Ann <ann@example.com> [no]: ")
		if err != nil || line == "" {
			return s, err
		}
		admin, err := parseAdmin(line)
		if err != nil {
			fmt.Fprintln(q.out, err)
			continue
		}
		s.Admins = append(s.Admins, admin)
	}
}

// server asks for what there is to say about a mail server.
func (q *questions) server(s taskdb.Setup, now taskdb.MailSettings) (taskdb.Setup, error) {
	for {
		port, err := q.text("Port", strconv.Itoa(now.Port))
		if err != nil || port == nil {
			if err != nil {
				return s, err
			}
			break
		}
		n, err := strconv.Atoi("0" + *port)
		if err == nil && n <= 65535 {
			s.Port = &n
			break
		}
		fmt.Fprintln(q.out, "a port is a number up to 65535; 0 is the usual one")
	}
	var err error
	if s.User, err = q.text("Login", now.User); err != nil {
		return s, err
	}
	fmt.Fprint(q.out, "Password, which is not shown [as it is]: ")
	password, err := q.secret()
	fmt.Fprintln(q.out)
	switch {
	case err != nil:
		return s, err
	case password == "-":
		s.Password = new("")
	case password != "":
		s.Password = &password
	}
	s.From, err = q.text("Sender", now.From)
	return s, err
}

// text asks for a text and returns nil when it is to stay as it is.
func (q *questions) text(what, now string) (*string, error) {
	shown := now
	if now == "" || now == "0" {
		shown = "none"
	}
	line, err := q.line(fmt.Sprintf("%s [%s]: ", what, shown))
	switch {
	case err != nil || line == "" || line == now:
		return nil, err
	case line == "-":
		return new(""), nil
	}
	return &line, nil
}

func (q *questions) line(prompt string) (string, error) {
	fmt.Fprint(q.out, prompt)
	line, err := q.in.ReadString('\n')
	if err != nil && !(errors.Is(err, io.EOF) && line != "") {
		if errors.Is(err, io.EOF) {
			err = errors.New("the answers end too early; nothing was written")
		}
		return "", err
	}
	return strings.TrimSpace(line), nil
}
