package notifier

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/wrktalk/wrktalk-agent/internal/task"
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

// underline underlines a heading.
func underline(s string) string { return strings.Repeat("-", utf8.RuneCountInString(s)) }

// Label makes s one short line, and instead when nothing is left of it.
func Label(s, instead string) string {
	s = strings.TrimSpace(task.SafeText(OneLine(s), maxLabel))
	if s == "" {
		return instead
	}
	return s
}

// OneLine makes s one line of printable text: what would break a line becomes a
// space, terminal colours go, and so do characters that only deceive.
func OneLine(s string) string { return strings.Join(strings.FieldsFunc(printable(s), isBreak), " ") }

// multiLine does the same for text of several lines.
func multiLine(s string) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	lines := strings.FieldsFunc(printable(s), isBreak)
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

func isBreak(r rune) bool { return r == '\n' || r == '\r' || r == '\u2028' || r == '\u2029' }

// printable drops terminal escape sequences, control characters and the
// invisible ones that reorder text.
func printable(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	var b strings.Builder
	for len(s) > 0 {
		if n := escapeSequence(s); n > 0 {
			s = s[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		switch {
		case r == '\t':
			b.WriteString("    ")
		case isBreak(r):
			b.WriteRune(r)
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r):
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// escapeSequence returns the length of the ANSI control sequence s begins
// with, 0 when it begins with none.
func escapeSequence(s string) int {
	if !strings.HasPrefix(s, "\x1b[") {
		return 0
	}
	for i := 2; i < len(s); i++ {
		if s[i] >= 0x40 && s[i] <= 0x7e {
			return i + 1
		}
		if s[i] < 0x20 {
			return 0
		}
	}
	return len(s)
}

func capitalize(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return string(unicode.ToUpper(r)) + s[n:]
}
