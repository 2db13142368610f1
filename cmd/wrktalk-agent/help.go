package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// printHelp shows what c does, with its commands or its flags.
func printHelp(w io.Writer, c *cobra.Command) {
	if !c.HasParent() {
		printOverview(w, c)
		return
	}
	text := c.Short + "."
	if c.Long != "" {
		text = strings.TrimSpace(c.Long)
	}
	fmt.Fprintf(w, "Usage: %s\n\n%s\n", c.UseLine(), text)
	if c.HasExample() {
		fmt.Fprintf(w, "\nExamples:\n%s\n", c.Example)
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprint(w, "\nCommands:\n")
		printCommands(w, c)
	}
	fmt.Fprint(w, "\nFlags:\n")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	list := func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		kind, text := pflag.UnquoteUsage(f)
		fmt.Fprintf(tw, "  %s\t%s\n", strings.TrimSpace(name+" "+kind), text)
	}
	all := pflag.NewFlagSet("", pflag.ContinueOnError) // sorted over both
	all.AddFlagSet(c.LocalFlags())
	all.AddFlagSet(c.InheritedFlags())
	all.VisitAll(list)
	tw.Flush()
}

func printOverview(w io.Writer, root *cobra.Command) {
	fmt.Fprint(w, "wrktalk-agent deploys the releases that its PostgreSQL database asks for.\n\nUsage: wrktalk-agent COMMAND [arguments]\n\n")
	printCommands(w, root)
	fmt.Fprint(w, `
Every command takes --config FILE (default: WRKTALK_AGENT_CONFIG, then
/etc/wrktalk-agent/config.toml if it is there) and --set section.key=value.
wrktalk-agent COMMAND --help shows its flags. Exit codes: 0 done, 1 failed,
2 wrong usage or configuration.
`)
}

func printCommands(w io.Writer, c *cobra.Command) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			name, args, _ := strings.Cut(sub.Use, " ")
			fmt.Fprintf(tw, "  %s %s\t%s\n", name, args, sub.Short)
		}
	}
	tw.Flush()
}

// helpCommand is `wrktalk-agent help`, which the help of the others goes without.
func helpCommand(a *app, root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Hidden: true, Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			c, _, err := root.Find(args)
			if err != nil || c == root && len(args) > 0 {
				return noSuchCommand(a, root, args)
			}
			printHelp(a.stdout, c)
			return nil
		},
	}
}
