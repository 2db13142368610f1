package helm

import "strings"

// maxDump is how long a value may be that an error of the API quotes, in bytes.
const maxDump = 80

// withoutDumps leaves out of an error the objects that the API quotes in full,
// as of `spec.template: Invalid value: {"metadata":...}: field is immutable`.
func withoutDumps(text string) string {
	const before = "Invalid value: "
	var out strings.Builder
	for {
		i := strings.Index(text, before)
		if i < 0 {
			break
		}
		i += len(before)
		out.WriteString(text[:i])
		text = text[i:]
		open := strings.IndexAny(text, "{[")
		if open < 0 || strings.ContainsAny(text[:open], " :\"") {
			continue // a plain value
		}
		if end := closing(text[open:]); end > maxDump {
			out.WriteString("{…}")
			text = text[open+end:]
		}
	}
	out.WriteString(text)
	return out.String()
}

// closing returns how many bytes of text its first brace or bracket and all up to the
// one that closes it take, 0 when none does. Those in double quotes do not count.
func closing(text string) int {
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{', c == '[':
			depth++
		case c == '}', c == ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}
