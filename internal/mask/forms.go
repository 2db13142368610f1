package mask

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// forms returns the ways in which programs print value: quoted, in JSON, in a URL.
func forms(value string) []string {
	var found []string
	add := func(s string) {
		if s != value && s != "" && !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	quoted := strconv.Quote(value)
	add(quoted[1 : len(quoted)-1])
	if doc, err := json.Marshal(value); err == nil {
		text := string(doc[1 : len(doc)-1])
		add(text)
		add(strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(text))
	}
	for _, escaped := range []string{url.QueryEscape(value), url.PathEscape(value)} {
		add(escaped)
		add(percent.ReplaceAllStringFunc(escaped, strings.ToLower))
	}
	return found
}

var percent = regexp.MustCompile(`%[0-9A-F]{2}`)

// encoded returns value in base64 and hexadecimal. Of base64 there are three more
// spellings, for a value in the middle of something longer, as user:password is:
// where it begins decides about all its digits but those at the ends.
func encoded(value string) []string {
	found := []string{hex.EncodeToString([]byte(value)), strings.ToUpper(hex.EncodeToString([]byte(value)))}
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		found = append(found, e.EncodeToString([]byte(value)))
		for before := range 3 {
			text := e.EncodeToString(append(make([]byte, before), value...))
			text = text[[]int{0, 2, 3}[before]:]
			if (before+len(value))%3 != 0 {
				text = text[:len(text)-1]
			}
			if len(text) >= minToken {
				found = append(found, text)
			}
		}
	}
	return found
}
