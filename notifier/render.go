package notifier

import (
	"bytes"
	"embed"
	"fmt"
	htmltemplate "html/template"
	"regexp"
	"strings"
	"sync"
	texttemplate "text/template"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Origin is where the agent runs and what it deploys to, in words an
// administrator recognises.
type Origin struct {
	Host   string // the host's name
	Target string // such as "Compose project wrktalk"; "" when it is not known
}

// Content is a mail without its envelope.
type Content struct {
	Subject string // one line of printable text
	Text    string // lines end in \n
	HTML    string // a whole document without remote content
}

// The most that a mail carries of what programs printed.
const (
	maxLogLines = 60
	maxLogLine  = 1000 // bytes
	maxLabel    = 100  // bytes of a version or a name
)

// plainID is a task's id that can be typed as it is.
var plainID = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

//go:embed templates/mail.txt templates/mail.html
var templates embed.FS

// The templates are parsed when the first mail is written: every component is
// this program, and an idle one should not pay for them.
var (
	textMail = sync.OnceValue(func() *texttemplate.Template {
		funcs := texttemplate.FuncMap{"wrap": wrap, "indent": indent, "pad": pad, "underline": underline}
		return texttemplate.Must(texttemplate.New("mail.txt").Funcs(funcs).ParseFS(templates, "templates/mail.txt"))
	})
	htmlMail = sync.OnceValue(func() *htmltemplate.Template {
		return htmltemplate.Must(htmltemplate.ParseFS(templates, "templates/mail.html"))
	})
)

// page is what both templates show.
type page struct {
	Subject  string
	Badge    string // the status word
	Class    string // good or bad: the colour
	Headline string
	Summary  string // what serves now, and what the runner said about it
	Facts    []fact
	Cause    string
	Log      []string
	Hints    []string // commands that show more, on failures
	Host     string
	Footer   string // why the reader got this
}

type fact struct{ Name, Value string }

// Render writes the mail about an outcome. The same outcome gives the same
// content. Whatever programs and rows contain comes out harmless: the subject
// stays one line, control characters are gone, HTML is escaped.
func Render(o task.Outcome, origin Origin) (Content, error) {
	subject, headline := titles(o, origin)
	host := Label(origin.Host, "this host")
	p := page{
		Subject: subject, Headline: headline,
		Badge: string(o.Notice()), Class: "good",
		Summary: summary(o),
		Facts:   facts(o, origin),
		Host:    host,
		Footer:  "The WrkTalk agent on " + host + " sends this to every active administrator.",
	}
	if !o.Succeeded {
		p.Class = "bad"
		p.Cause = multiLine(task.SafeText(o.Error, task.MaxMessage))
		p.Log = logTail(o.LogTail)
		p.Hints = []string{"wrktalk-agent status"}
		if plainID.MatchString(string(o.TaskID)) {
			p.Hints = append(p.Hints, "wrktalk-agent logs "+string(o.TaskID)) // from the history, later
		}
	}
	return render(p)
}

func render(p page) (Content, error) {
	var text, html bytes.Buffer
	if err := textMail().Execute(&text, p); err != nil {
		return Content{}, fmt.Errorf("render text of mail: %w", err)
	}
	if err := htmlMail().Execute(&html, p); err != nil {
		return Content{}, fmt.Errorf("render HTML of mail: %w", err)
	}
	return Content{Subject: p.Subject, Text: text.String(), HTML: html.String()}, nil
}

// RenderTest writes the mail of `wrktalk-agent notify-test`.
func RenderTest(origin Origin, server string, now time.Time) (Content, error) {
	host := Label(origin.Host, "this host")
	return render(page{
		Subject:  "[WrkTalk] TEST: mail from " + host + " arrives",
		Badge:    "TEST",
		Class:    "good",
		Headline: "Mail from " + host + " arrives",
		Summary:  "Somebody ran `wrktalk-agent notify-test`. Nothing was deployed.",
		Facts: []fact{
			{"Mail server", Label(server, "not known")},
			{"Sent", timestamp(now)},
		},
		Host:   host,
		Footer: "The WrkTalk agent on " + host + " sent this once, to this address.",
	})
}

// titles returns the subject and the headline.
func titles(o task.Outcome, origin Origin) (subject, headline string) {
	host := Label(origin.Host, "this host")
	release := Label(o.ReleaseVersion, "")
	named := func(with, without string) string {
		if release == "" {
			return without
		}
		return with + release
	}
	restored := ""
	if o.Restored {
		restored = ", " + Label(o.Serving, "the previous release") + " restored"
	}
	switch o.Notice() {
	case task.NoticeSuccess:
		subject = named("", "release") + " deployed on " + host
		headline = named("", "The release") + " is deployed on " + host
	case task.NoticeRollbackSuccess:
		subject = named("back to ", "rolled back") + " on " + host
		headline = named("Rolled back to ", "Rolled back") + " on " + host
	case task.NoticeRollbackFailed:
		subject = named("not rolled back to ", "not rolled back") + " on " + host + restored
		headline = named("The rollback to ", "The rollback") + " failed on " + host
	default:
		if !o.Kind.Known() {
			subject = fmt.Sprintf("unknown task type %q on %s", Label(string(o.Kind), ""), host)
			headline = fmt.Sprintf("A task of unknown type %q was refused on %s", Label(string(o.Kind), ""), host)
			break
		}
		subject = named("", "release") + " not deployed on " + host + restored
		headline = named("", "The release") + " could not be deployed on " + host
	}
	return "[WrkTalk] " + string(o.Notice()) + ": " + subject, headline
}

// summary returns what a reader in a hurry needs to know: what serves now, and
// the runner's own sentence.
func summary(o task.Outcome) string {
	var now string
	switch serving := Label(o.Serving, ""); {
	case o.Restored:
		now = Label(o.Serving, "The release that served before") + " was restored and serves again."
	case serving != "":
		now = serving + " serves now."
	case !o.Succeeded:
		now = "Nothing serves now, or it could not be told what does: please look."
	}
	message := OneLine(task.SafeText(o.Message, task.MaxMessage))
	if message != "" && !strings.ContainsAny(message[len(message)-1:], ".!?") {
		message += "."
	}
	return strings.TrimSpace(now + " " + capitalize(message))
}

func facts(o task.Outcome, origin Origin) []fact {
	var all []fact
	add := func(name, value string) {
		if value != "" {
			all = append(all, fact{name, value})
		}
	}
	release := Label(o.ReleaseVersion, "")
	if t := Label(string(o.ChartType), ""); t != "" && release != "" {
		release += " (" + t + ")"
	}
	add("Status", string(o.Notice()))
	add("Release", release)
	add("Target", Label(origin.Target, ""))
	add("Host", Label(origin.Host, ""))
	add("Serves now", Label(o.Serving, "not known"))
	if o.HelmRevision > 0 {
		add("Helm revision", fmt.Sprint(o.HelmRevision))
	}
	add("Started", timestamp(o.StartedAt))
	add("Finished", timestamp(o.FinishedAt))
	add("Took", took(o.Duration()))
	add("Task", Label(string(o.TaskID), ""))
	return all
}

// timestamp writes a time for people anywhere: UTC, to the second.
func timestamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// took writes a duration as people say it: 850 ms, 42 s, 3 min 5 s, 1 h 2 min.
func took(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
}

// logTail keeps the end of a log, made harmless.
func logTail(lines []string) []string {
	if len(lines) > maxLogLines {
		lines = lines[len(lines)-maxLogLines:]
	}
	tail := make([]string, 0, len(lines))
	for _, l := range lines {
		tail = append(tail, strings.TrimRight(OneLine(task.SafeText(l, maxLogLine)), " "))
	}
	return tail
}
