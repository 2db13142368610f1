package mask

import "strings"

// hiddenAt reports whether e is to be hidden at s[i:], which begins with it.
func (e entry) hiddenAt(s string, i int) bool {
	switch e.where {
	case everywhere:
		return true
	case asToken:
		return alone(s, i, i+len(e.text)) || alone(s, i, i+len(e.text), '-', '.') && namedBefore(s, i)
	default:
		return alone(s, i, i+len(e.text)) && namedBefore(s, i)
	}
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
}

// alone reports whether s[from:to] is not part of a longer word or name; but a
// text that begins or ends otherwise than words do may stand anywhere there. The
// joiners do not make a name of it.
func alone(s string, from, to int, joiners ...byte) bool {
	if from > 0 && isWord(s[from]) && !strings.HasSuffix(" "+s[:from], " -p") { // mysql -psecret
		if isWord(s[from-1]) || from > 1 && joins(s[from-1], joiners) && isWord(s[from-2]) {
			return false
		}
	}
	if to < len(s) && isWord(s[to-1]) {
		if isWord(s[to]) || to+1 < len(s) && joins(s[to], joiners) && isWord(s[to+1]) {
			return false
		}
	}
	return true
}

// joins reports whether c makes one name of what stands on both sides of it.
func joins(c byte, not []byte) bool {
	return (c == '-' || c == '.') && strings.IndexByte(string(not), c) < 0
}

// maxName bounds how long a name before a value is read, in bytes.
const maxName = 80

// namedBefore reports whether a name that promises a secret stands right before
// s[i:], as in PASSWORD=, "password": ", --password and password.
func namedBefore(s string, i int) bool {
	before := strings.TrimRight(s[max(0, i-2*maxName):i], `"'\`)
	rest := strings.TrimRight(before, " \t")
	blank := len(rest) < len(before)
	assigned := strings.TrimRight(strings.TrimSuffix(strings.TrimSuffix(rest, ">"), "="), ":")
	if len(assigned) < len(rest) {
		rest = strings.TrimRight(assigned, " \t")
	} else if !blank {
		return false
	}
	rest = strings.TrimRight(rest, `"'\`)
	begin := len(rest)
	for begin > 0 && len(rest)-begin < maxName && (isWord(rest[begin-1]) || rest[begin-1] == '-' || rest[begin-1] == '.') {
		begin--
	}
	name := rest[begin:]
	if len(assigned) < len(strings.TrimRight(before, " \t")) {
		return LooksSecret(name)
	}
	// Without a sign between, only an option or the bare word will do.
	return strings.HasPrefix(name, "-") && LooksSecret(name) || bareNames[strings.ToLower(name)]
}

var bareNames = map[string]bool{"password": true, "passwd": true, "passphrase": true, "pin": true, "secret": true, "token": true}
