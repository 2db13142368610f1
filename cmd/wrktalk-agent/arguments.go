package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// arguments accepts from least to most arguments, none of which is empty.
func arguments(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usagef("got %d arguments; usage: wrktalk-agent %s; see wrktalk-agent %s --help", len(args), c.Use, c.Name())
		}
		for _, arg := range args {
			if strings.TrimSpace(arg) == "" { // of a shell's variable that is not set, and would mean something else
				return usagef("an argument is empty; usage: wrktalk-agent %s", c.Use)
			}
		}
		return nil
	}
}

// outputFlag adds --output to c.
func (a *app) outputFlag(c *cobra.Command) {
	a.output = "text"
	c.Flags().Func("output", "print `text` for people or json for programs", func(s string) error {
		if s != "text" && s != "json" {
			return errors.New("want text or json")
		}
		a.output = s
		return nil
	})
	// It fails for flags that are not there, and this one is.
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// normalise lets flags be written as earlier versions took them, with one dash
// or two whatever their length. The values of flags are left alone.
func normalise(root *cobra.Command, args []string) []string {
	if len(args) > 0 && (args[0] == "--version" || args[0] == "-version") {
		args = append([]string{"version"}, args[1:]...)
	}
	c, _, err := root.Find(args)
	if err != nil {
		return args
	}
	c.InitDefaultHelpFlag()
	out := make([]string, 0, len(args))
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			return append(append(out, arg), args...)
		}
		f := flagOf(c, arg)
		if f == nil {
			out = append(out, arg)
			continue
		}
		_, value, inline := strings.Cut(arg, "=")
		arg = "--" + f.Name
		if inline {
			arg += "=" + value
		}
		out = append(out, arg)
		if !inline && f.NoOptDefVal == "" && len(args) > 0 {
			out, args = append(out, args[0]), args[1:]
		}
	}
	return out
}

// flagOf returns the flag of c that arg gives, by its name or shorthand after
// one or two dashes; nil when it is none.
func flagOf(c *cobra.Command, arg string) *pflag.Flag {
	name, ok := strings.CutPrefix(arg, "-")
	if !ok {
		return nil
	}
	name, _, _ = strings.Cut(strings.TrimPrefix(name, "-"), "=")
	if len(name) == 1 {
		return c.Flags().ShorthandLookup(name)
	}
	return c.Flag(name)
}
