// Command wrktalk-agent claims deployment tasks from the customer's PostgreSQL,
// has them deployed, and tells the administrators. See README.md.
//
// Each command lives in a file of its own name; app.go holds what they share.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // wrong usage or configuration
)

// command is one word after wrktalk-agent.
type command struct {
	name    string
	args    string // synopsis of the arguments
	summary string // one line
	run     func(a *app, args []string) error
}

// commands lists what wrktalk-agent can do, in the order help shows it.
func commands() []command {
	return []command{
		{"run", "", "supervise fetcher, runner and notifier: the agent as a service", runSupervisor},
		{"check", "", "check configuration, database, schema, engine, mail and staging", runCheck},
		{"push", "FILE --version V", "store a release (tar.gz, directory or Compose file) in the database", runPush},
		{"deploy", "VERSION", "ask for a release to be deployed; --wait follows it", runDeploy},
		{"rollback", "[VERSION]", "ask for the previous release, or the one named, to serve again", runRollback},
		{"status", "", "show what serves, what runs, what waits and what came of the last tasks", runStatus},
		{"logs", "[TASK]", "show what Helm or Compose says about a task; --follow while it says it", runLogs},
		{"inspect", "[TASK]", "explain what lies in the staging directory, and who acts next", runInspect},
		{"cancel", "TASK", "cancel a task that is pending or running", runCancel},
		{"config", "", "show every setting, its value and where it comes from", runConfig},
		{"migrate", "", "add the agent's own schema; --create for an empty database, --down to remove", runMigrate},
		{"notify-test", "ADDRESS", "send a test mail with the settings in the database", runNotifyTest},
		{"version", "", "show the version", runVersion},
		{"fetcher", "", "run this component alone, in the foreground", runFetcher},
		{"runner", "", "run this component alone, in the foreground", runRunner},
		{"notifier", "", "run this component alone, in the foreground", runNotifier},
	}
}

// usageError is wrong usage or configuration: exit code 2.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errSilent makes the exit code 1 without another line: what went wrong has
// been shown already.
var errSilent = errors.New("failed")

func main() {
	a := &app{environ: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, euid: os.Geteuid()}
	os.Exit(a.main(os.Args[1:]))
}

// main runs the command that args name and returns the exit code.
func (a *app) main(args []string) int {
	if len(args) == 0 {
		help(a.stderr)
		return exitUsage
	}
	name := args[0]
	switch name {
	case "help", "--help", "-h", "-help":
		help(a.stdout)
		return exitDone
	case "--version", "-version":
		name = "version"
	}
	for _, c := range commands() {
		if c.name == name {
			a.command = c
			return a.report(c.run(a, args[1:]))
		}
	}
	fmt.Fprintf(a.stderr, "wrktalk-agent: there is no command %q; see wrktalk-agent help\n", name)
	return exitUsage
}

// report shows an error, one line per problem, and returns its exit code.
func (a *app) report(err error) int {
	var usage usageError
	switch {
	case err == nil, errors.Is(err, errHelp):
		return exitDone
	case errors.Is(err, errSilent):
		return exitFailed
	}
	text := err.Error()
	if advice := taskdb.Explain(err); advice != "" && !strings.Contains(text, advice) {
		text += ": " + advice
	}
	for line := range strings.Lines(text) {
		fmt.Fprintf(a.stderr, "wrktalk-agent %s: %s\n", a.command.name, strings.TrimSpace(line))
	}
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

func help(w io.Writer) {
	fmt.Fprint(w, "wrktalk-agent deploys the releases that its PostgreSQL database asks for.\n\nUsage: wrktalk-agent COMMAND [arguments]\n\n")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range commands() {
		fmt.Fprintf(tw, "  %s %s\t%s\n", c.name, c.args, c.summary)
	}
	tw.Flush()
	fmt.Fprint(w, `
Every command takes --config FILE (default: WRKTALK_AGENT_CONFIG, then
/etc/wrktalk-agent/config.toml if it is there) and --set section.key=value.
wrktalk-agent COMMAND --help shows its flags. Exit codes: 0 done, 1 failed,
2 wrong usage or configuration.
`)
}
