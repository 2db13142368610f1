package main

import (
	"bytes"
	"flag"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the help texts of docs/commands.md")

// docs/commands.md holds the help of every command as the program prints it.
// After a change, run
//
//	go test ./cmd/wrktalk-agent -run TestCommandReference -update
func TestCommandReference(t *testing.T) {
	const file = "../../docs/commands.md"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	blocks := regexp.MustCompile("(?s)(<!-- help: ([a-z-]+) -->\n).*?(<!-- end -->\n)")
	var found, all []string
	want := blocks.ReplaceAllStringFunc(text, func(block string) string {
		m := blocks.FindStringSubmatch(block)
		found = append(found, m[2])
		return m[1] + "```\n" + helpOf(t, m[2]) + "```\n" + m[3]
	})
	for _, command := range commands {
		all = append(all, command(&app{}).Name())
	}
	slices.Sort(found)
	slices.Sort(all)
	if !slices.Equal(found, all) {
		t.Errorf("%s explains the commands %q, there are %q", file, found, all)
	}
	if want == text {
		return
	}
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s differs from what the program prints: run this test with -update", file)
}

// helpOf returns what a command prints with --help, which must touch nothing.
func helpOf(t *testing.T, name string) string {
	t.Helper()
	var out, complaint bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &complaint, euid: os.Geteuid()}
	if code := a.main([]string{name, "--help"}); code != exitDone || complaint.Len() > 0 {
		t.Errorf("%s --help: exit code %d, %s", name, code, complaint.String())
	}
	return out.String()
}
