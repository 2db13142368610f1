package unpack

import (
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxName      = 4095 // bytes; the kernel's PATH_MAX less its final NUL
	maxComponent = 255  // bytes; NAME_MAX of the usual file systems
	maxShown     = 200  // bytes of a name that a Refusal keeps
)

// badText says what makes s unfit for a name or a link target: "" for nothing.
// Control characters would let a name forge lines in logs and mails.
func badText(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > maxName:
		return fmt.Sprintf("has more than %d bytes", maxName)
	case !utf8.ValidString(s):
		return "is not UTF-8"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "has a control character"
	case strings.ContainsFunc(s, invisible):
		return "has a character that is not seen, or changes how others are shown"
	case path.IsAbs(s):
		return "is absolute"
	}
	for part := range strings.SplitSeq(s, "/") {
		if len(part) > maxComponent {
			return fmt.Sprintf("has a component of more than %d bytes", maxComponent)
		}
	}
	return ""
}

// invisible reports whether people would not see r, or see others in another order
// because of it: zero-width, bidirectional and other format characters, which make
// one name look like another.
func invisible(r rune) bool {
	return unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point)
}

// cleanName returns the path that an entry's name stands for, "." for the root,
// or says what is bad about the name. Even harmless .. are refused: programs
// differ on what a/../b means when a is a link.
func cleanName(name string, depth int) (clean, bad string) {
	if bad := badText(name); bad != "" {
		return "", bad
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", "has .. in it"
		}
	}
	clean = path.Clean(name)
	if strings.Count(clean, "/")+1 > depth {
		return "", fmt.Sprintf("is nested deeper than %d levels", depth)
	}
	// The tar reader's strings may be parts of much larger ones, up to 1 MiB of
	// extended header, which a part would keep in memory.
	return strings.Clone(clean), ""
}

// badTarget says what is bad about the target of a symbolic link at name, which
// is clean: "" for nothing. Leading .. may climb as far as the root. climbs tells
// that the target climbs again after it has gone down: where that leads depends on
// what it climbs out of, which may be a link itself, and is known when all the rest
// is extracted.
func badTarget(name, target string) (bad string, climbs bool) {
	if bad := badText(target); bad != "" {
		return bad, false
	}
	level := strings.Count(name, "/") // of the directory that holds the link
	down := false
	for part := range strings.SplitSeq(target, "/") {
		switch {
		case part == "" || part == ".":
		case part != "..":
			down = true
		case down:
			return "", true
		case level == 0:
			return leaves, false
		default:
			level--
		}
	}
	return "", false
}

// shorten cuts a name to what fits into a log line, and copies it.
func shorten(name string) string {
	if len(name) <= maxShown {
		return strings.Clone(name)
	}
	cut := maxShown
	for cut > maxShown-utf8.UTFMax && !utf8.RuneStart(name[cut]) {
		cut--
	}
	return name[:cut] + "…"
}
