package notifier

import (
	"strings"
	"unicode/utf8"
)

// textWidth is the longest line of a plain-text mail in characters; what has
// no spaces, and the log, may be longer.
const textWidth = 76

// wrap breaks every line of s at spaces.
func wrap(s string) string {
	var out []string
	for l := range strings.Lines(s) {
		out = append(out, wrapLine(strings.TrimRight(l, "\n"))...)
	}
	return strings.Join(out, "\n")
}

func wrapLine(l string) []string {
	var lines []string
	current, width := "", 0
	for w := range strings.FieldsSeq(l) {
		n := utf8.RuneCountInString(w)
		if current != "" && width+1+n > textWidth {
			lines = append(lines, current)
			current, width = "", 0
		}
		if current != "" {
			current, width = current+" ", width+1
		}
		current, width = current+w, width+n
	}
	return append(lines, current)
}

// indent puts four spaces before every line of s, so that what programs
// printed cannot pass for the agent's own words.
func indent(s string) string {
	return "    " + strings.ReplaceAll(s, "\n", "\n    ")
}

// pad fills s with spaces to the width of the longest fact's name.
func pad(s string) string {
	const width = 15
	return s + strings.Repeat(" ", max(1, width-utf8.RuneCountInString(s)))
}

// rule underlines a heading.
func rule(s string) string { return strings.Repeat("-", utf8.RuneCountInString(s)) }
