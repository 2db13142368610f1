package testenv

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// DocBlock is an indented block of a page: commands, what they print, or a part of a
// configuration.
type DocBlock struct {
	Section string // the heading that it stands under
	Number  int    // counted from 0 under that heading
	Text    string // without the indentation
}

// DocBlocks returns the blocks of a page in Markdown that are indented by four or more.
// Fenced blocks are not among them: tests of their own write or read those.
func DocBlocks(page string) []DocBlock {
	var blocks []DocBlock
	var section string
	var lines []string
	numbers := map[string]int{}
	end := func() {
		if len(lines) > 0 {
			blocks = append(blocks, DocBlock{section, numbers[section], dedent(lines)})
			numbers[section]++
		}
		lines = nil
	}
	fenced, blank := false, true
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			end()
			fenced = !fenced
		case fenced:
		case strings.HasPrefix(line, "    ") && (blank || len(lines) > 0):
			lines = append(lines, line)
		case line == "" && len(lines) > 0:
			lines = append(lines, line) // inside a block, unless nothing of it follows
		default:
			end()
			if text := strings.TrimLeft(line, "#"); text != line {
				section = strings.TrimSpace(text)
			}
		}
		blank = line == ""
	}
	end()
	return blocks
}

// dedent joins lines without the indentation that all of them have, and without the
// empty ones at the end.
func dedent(lines []string) string {
	margin := -1
	for _, line := range lines {
		if indent := len(line) - len(strings.TrimLeft(line, " ")); line != "" && (margin < 0 || indent < margin) {
			margin = indent
		}
	}
	for i, line := range lines {
		lines[i] = line[min(margin, len(line)):]
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\n") + "\n"
}

// Doc returns a block of one of the project's pages, so that a test can run what the
// page says or compare it with what is printed. The page is named by its path from the
// project's root. Each old of the replacements, old and new in turns, is a place where
// a reader puts something of their own; the test fails if the block does not have it,
// or if there is no such block. That each block of the pages is asked for somewhere is
// a test of this package.
func Doc(t testing.TB, page, section string, number int, replacements ...string) string {
	t.Helper()
	root, err := goList(context.Background(), "{{.Dir}}", productModule)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range DocBlocks(string(text)) {
		if b.Section != section || b.Number != number {
			continue
		}
		for i := 0; i < len(replacements); i += 2 {
			if !strings.Contains(b.Text, replacements[i]) {
				t.Fatalf("block %d under %q of %s does not say %q:\n%s", number, section, page, replacements[i], b.Text)
			}
		}
		return strings.NewReplacer(replacements...).Replace(b.Text)
	}
	t.Fatalf("%s has no block %d under %q", page, number, section)
	return ""
}
