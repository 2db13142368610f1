// Command wrktalk-agent claims deployment tasks from the customer's PostgreSQL,
// has them deployed, and tells the administrators. See README.md.
//
// Each command lives in a file of its own name; app.go holds what they share,
// arguments.go and help.go what is the same in every command line. What the
// commands know, package operator finds out; here are flags, printing and wiring.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/operator"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // wrong usage or configuration
)

// commands are what wrktalk-agent can do, in the order help shows it.
var commands = []func(*app) *cobra.Command{
	runCommand, checkCommand, pushCommand, deployCommand, rollbackCommand, statusCommand, releasesCommand, logsCommand, historyCommand, inspectCommand,
	cancelCommand, forgetCommand, healthCommand, configCommand, migrateCommand, setupCommand, notifyTestCommand, versionCommand,
	componentCommand("fetcher", (*app).runFetcher), componentCommand("runner", (*app).runRunner),
	componentCommand("notifier", (*app).runNotifier),
}

// usageError is wrong usage or configuration: exit code 2.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errSilent makes the exit code 1 without another line: what went wrong has
// been shown already. errSilentUsage is the same for wrong usage.
var (
	errSilent      = errors.New("failed")
	errSilentUsage = usageError{errSilent}
)

func main() {
	a := &app{environ: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: journalled(os.Stderr, os.Environ()), euid: os.Geteuid()}
	os.Exit(a.main(os.Args[1:]))
}

// main runs the command that args name and returns the exit code.
func (a *app) main(args []string) int {
	root := rootCommand(a)
	root.SetArgs(normalise(root, args))
	c, err := root.ExecuteC()
	if c != root {
		a.command = c.Name()
	}
	return a.report(err)
}

func init() { cobra.EnableCommandSorting = false } // the order is that of a release's life

// rootCommand is the whole command line.
func rootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use: "wrktalk-agent COMMAND", Short: "deploy the releases that a PostgreSQL database asks for",
		SilenceErrors: true, SilenceUsage: true, SuggestionsMinimumDistance: 2,
		// Else cobra explains unknown commands itself, in several lines, or flags first.
		Args: cobra.ArbitraryArgs, FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		PersistentPreRun: func(c *cobra.Command, _ []string) { a.command = c.Name() },
		RunE:             func(c *cobra.Command, args []string) error { return noSuchCommand(a, c, args) },
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetHelpFunc(func(c *cobra.Command, _ []string) { printHelp(a.stdout, c) })
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%w; see %s --help", err, c.CommandPath())
	})
	fs := root.PersistentFlags()
	fs.StringVar(&a.configFile, "config", "", "read this configuration `file`")
	fs.StringArrayVar(&a.sets, "set", nil, "set one `section.key=value` of the configuration; may be repeated")
	for _, command := range commands {
		root.AddCommand(command(a))
	}
	root.SetHelpCommand(helpCommand(a, root))
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Short = "print the completion script of a shell"
			c.Args = cobra.ArbitraryArgs
			c.RunE = func(*cobra.Command, []string) error {
				return usagef("which shell? see wrktalk-agent completion --help; usage: wrktalk-agent completion bash, zsh, fish or powershell")
			}
		}
	}
	return root
}

// noSuchCommand is what the root does: without arguments it shows its help.
func noSuchCommand(a *app, root *cobra.Command, args []string) error {
	if len(args) == 0 {
		printHelp(a.stderr, root)
		return errSilentUsage
	}
	a.command = ""
	meant := ""
	if names := root.SuggestionsFor(args[0]); len(names) > 0 {
		meant = fmt.Sprintf(" (did you mean %s?)", strings.Join(names, " or "))
	}
	return usagef("there is no command %q%s; see wrktalk-agent help", args[0], meant)
}

// report shows an error, one line per problem, and returns its exit code.
func (a *app) report(err error) int {
	if err == nil {
		return exitDone
	}
	code := exitFailed
	var usage usageError
	var name *operator.NameError
	if errors.As(err, &usage) || errors.As(err, &name) {
		code = exitUsage
	}
	if errors.Is(err, errSilent) {
		return code
	}
	for line := range strings.Lines(operator.Explain(err)) {
		fmt.Fprintf(a.stderr, "%s: %s\n", a.prefix(), strings.TrimSpace(line))
	}
	return code
}

// prefix begins each line on standard error.
func (a *app) prefix() string { return strings.TrimSpace("wrktalk-agent " + a.command) }
