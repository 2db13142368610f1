package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// app is what a command sees of the world.
type app struct {
	environ        []string
	stdin          io.Reader
	stdout, stderr io.Writer
	euid           int
	command        command

	configFile string
	sets       []string
	output     string // text or json, of the commands that register it
}

// errHelp says that help was asked for and shown.
var errHelp = flag.ErrHelp

// flags returns a flag set for the command, with the flags all commands share.
func (a *app) flags() *flag.FlagSet {
	fs := flag.NewFlagSet(a.command.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&a.configFile, "config", "", "read this configuration `file`")
	fs.Func("set", "set one `section.key=value` of the configuration; may be repeated", func(s string) error {
		a.sets = append(a.sets, s)
		return nil
	})
	return fs
}

// outputFlag adds --output to fs.
func (a *app) outputFlag(fs *flag.FlagSet) {
	a.output = "text"
	fs.Func("output", "print `text` for people or json for programs", func(s string) error {
		if s != "text" && s != "json" {
			return errors.New("want text or json")
		}
		a.output = s
		return nil
	})
}

// parse parses args, in which flags and other arguments may stand in any order,
// and returns the other arguments, of which there must be at least least and at
// most most.
func (a *app) parse(fs *flag.FlagSet, args []string, least, most int) ([]string, error) {
	var rest []string
	for {
		err := fs.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			a.usage(fs)
			return nil, errHelp
		}
		if err != nil {
			return nil, usagef("%w; see wrktalk-agent %s --help", err, a.command.name)
		}
		args = fs.Args()
		if len(args) == 0 {
			break
		}
		rest, args = append(rest, args[0]), args[1:]
	}
	if len(rest) < least || len(rest) > most {
		return nil, usagef("got %d arguments; usage: wrktalk-agent %s %s; see wrktalk-agent %s --help", len(rest), a.command.name, a.command.args, a.command.name)
	}
	return rest, nil
}

// usage shows the command's help.
func (a *app) usage(fs *flag.FlagSet) {
	fmt.Fprintf(a.stdout, "Usage: wrktalk-agent %s [flags]\n\n%s.\n\nFlags:\n",
		strings.TrimSpace(a.command.name+" "+a.command.args), a.command.summary)
	tw := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fs.VisitAll(func(f *flag.Flag) {
		kind, text := flag.UnquoteUsage(f)
		fmt.Fprintf(tw, "  --%s\t%s\n", strings.TrimSpace(f.Name+" "+kind), text)
	})
	tw.Flush()
}

// plain parses args of a command that has no flags and arguments of its own,
// and loads the configuration.
func (a *app) plain(args []string) (*config.Config, error) {
	if _, err := a.parse(a.flags(), args, 0, 0); err != nil {
		return nil, err
	}
	return a.config()
}

// config loads the configuration; what is odd about it goes to standard error.
func (a *app) config() (*config.Config, error) {
	cfg, err := config.Load(config.Source{File: a.configFile, Environ: a.environ, Sets: a.sets, Euid: a.euid})
	if err != nil {
		return nil, usageError{err}
	}
	return cfg, nil
}

// warn shows the configuration's warnings to a person.
func (a *app) warn(cfg *config.Config) {
	for _, w := range cfg.Warnings() {
		fmt.Fprintf(a.stderr, "wrktalk-agent %s: warning: %s\n", a.command.name, w)
	}
}

// database opens the database of cfg without connecting. The caller closes it.
func (a *app) database(ctx context.Context, cfg *config.Config) (*taskdb.DB, error) {
	return taskdb.Open(ctx, taskdb.Options{
		ConnString: cfg.DB.ConnString().Reveal(),
		AppName:    "wrktalk-agent " + a.command.name,
		MaxConns:   int32(cfg.DB.MaxConns),
	})
}

// target is what this agent deploys to.
func target(cfg *config.Config) taskdb.Target {
	return taskdb.Target{
		Deployment: cfg.Agent.DeploymentType,
		Namespace:  cfg.Kube.Namespace, HelmRelease: cfg.Helm.ReleaseName,
		ComposeProject: cfg.Compose.ProjectName,
	}
}

// logger returns the log a component or the supervisor writes to w.
func logger(w io.Writer, cfg *config.Config) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Log.Level}
	text := cfg.Log.Format == "text"
	if cfg.Log.Format == "auto" {
		text = isTerminal(w)
	}
	if text {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

// isTerminal reports whether w is a terminal that a person looks at.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// printJSON prints v for a program.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
