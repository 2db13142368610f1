package main

import (
	"slices"
	"strings"
	"testing"
)

// A flag may be written with one dash or two, before or after arguments; what
// follows it as a value is left alone.
func TestFlagsWithOneDash(t *testing.T) {
	root := rootCommand(&app{})
	for given, want := range map[string]string{
		"push dir -version 1.0":              "push dir --version 1.0",
		"push -version=1.0 -env .env dir":    "push --version=1.0 --env .env dir",
		"cancel -reason -wait x -wait":       "cancel --reason -wait x --wait",
		"cancel x --reason -force":           "cancel x --reason -force",
		"status -output json -config f":      "status --output json --config f",
		"status -wait":                       "status -wait",
		"logs -f":                            "logs --follow",
		"logs --f -output=json":              "logs --follow --output=json",
		"logs -help":                         "logs --help",
		"logs -- -f":                         "logs -- -f",
		"-version":                           "version",
		"--version --output json":            "version --output json",
		"--config f status -set a.b=c --set": "--config f status --set a.b=c --set",
	} {
		if got := normalise(root, strings.Fields(given)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s becomes %q, want %q", given, got, want)
		}
	}
}

// Wrong usage is one line that says what would be right, and exit code 2.
func TestWrongUsage(t *testing.T) {
	d := &operatorEnv{t: t, dir: t.TempDir()}
	for args, want := range map[string]string{
		"stauts":                 `wrktalk-agent: there is no command "stauts" (did you mean status?); see wrktalk-agent help`,
		"frobnicate --wait":      `wrktalk-agent: there is no command "frobnicate"; see wrktalk-agent help`,
		"status now":             "wrktalk-agent status: got 1 arguments; usage: wrktalk-agent status; see wrktalk-agent status --help",
		"deploy":                 "wrktalk-agent deploy: got 0 arguments; usage: wrktalk-agent deploy VERSION; see wrktalk-agent deploy --help",
		"status --wait":          "wrktalk-agent status: unknown flag: --wait; see wrktalk-agent status --help",
		"push dir --version":     "wrktalk-agent push: flag needs an argument: --version; see wrktalk-agent push --help",
		"status --output yaml":   `wrktalk-agent status: invalid argument "yaml" for "--output" flag: want text or json; see wrktalk-agent status --help`,
		"deploy 1.0 -at nowhere": `wrktalk-agent deploy: --at "nowhere" is no time: give 2026-11-23T22:00:00Z, 2026-11-23 22:00, 22:00 or +30m`,
		"push dir":               "wrktalk-agent push: --version is missing: name the release's version",
	} {
		out, complaint, code := d.run(strings.Fields(args)...)
		if code != exitUsage || out != "" || complaint != want+"\n" {
			t.Errorf("%s: exit code %d, %q, %q; want %q", args, code, out, complaint, want)
		}
	}
}

// Without arguments the help is an error, and asked for it is none. Completion
// knows the commands and what a flag accepts.
func TestHelpAndCompletion(t *testing.T) {
	d := &operatorEnv{t: t, dir: t.TempDir()}
	if out, complaint, code := d.run(); code != exitUsage || out != "" || !strings.Contains(complaint, "Usage: wrktalk-agent COMMAND") {
		t.Errorf("nothing: exit code %d, %q, %q", code, out, complaint)
	}
	for _, args := range []string{"help", "--help", "-help", "-h"} {
		if out := d.must(args); !strings.Contains(out, "rollback [VERSION]") {
			t.Errorf("%s says %q", args, out)
		}
	}
	if out := d.must("help", "status"); out != d.must("status", "-h") {
		t.Errorf("help status says %q", out)
	}
	if out := d.must("__complete", "status", "--output", ""); !strings.HasPrefix(out, "text\njson\n") {
		t.Errorf("completed: %q", out)
	}
	if out := d.must("completion", "bash"); !strings.Contains(out, "__start_wrktalk-agent") {
		t.Errorf("completion is %q", out)
	}
}
