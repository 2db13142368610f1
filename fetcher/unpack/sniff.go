package unpack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// HeadSize is how many bytes of a file are looked at to tell what it is.
const HeadSize = 1024

const (
	howToPack = "store a tar.gz of the release (tar -czf release.tar.gz -C DIRECTORY .)"
)

// notGzip says what an artifact is that begins with head and is not gzip.
func notGzip(head []byte) string {
	switch what := kindOf(head); {
	case len(head) == 0:
		return "is empty, and not a gzip'd tar archive"
	case what == gzipData:
		return "is damaged: its gzip header cannot be read"
	case what != "":
		return "is " + what + ", not a gzip'd tar archive"
	default:
		return "is not a gzip'd tar archive, and nothing else that is known here"
	}
}

// notTar says what an artifact is that is gzip and holds, from head on, no tar
// archive, which the tar reader said with err.
func notTar(head []byte, err error) string {
	const not = "is not a gzip'd tar archive: "
	switch what := kindOf(head); {
	case what == gzipData:
		return not + "it was compressed twice"
	case what == tarData:
		return fmt.Sprintf("holds a tar archive that is not valid (%v)", err)
	case what != "":
		return not + "inside of the gzip is " + what
	default:
		return not + "inside of the gzip is something else"
	}
}

const (
	gzipData = "gzip"
	tarData  = "a tar archive that is not compressed"

	composeData = "a Compose file"
)

// signatures are what files begin with, and what such a file is called.
var signatures = []struct{ head, what string }{
	{"\x1f\x8b", gzipData},
	{"PK\x03\x04", "a zip archive"},
	{"PK\x05\x06", "an empty zip archive"},
	{"\xfd7zXZ\x00", "xz"},
	{"\x28\xb5\x2f\xfd", "zstd"},
	{"BZh", "bzip2"},
	{"\x04\x22\x4d\x18", "lz4"},
	{"LZIP", "lzip"},
	{"\x5d\x00\x00", "lzma"},
	{"\x1f\x9d", "the output of compress (.Z)"},
	{"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"},
	{"Rar!\x1a\x07", "a RAR archive"},
	{"!<arch>\n", "a Debian package or another ar archive"},
	{"\xed\xab\xee\xdb", "an RPM package"},
	{"\x7fELF", "a program"},
	{"%PDF-", "a PDF document"},
	{"version https://git-lfs.github.com/spec/", "a Git LFS pointer (git lfs pull brings the file itself)"},
	{"-----BEGIN PGP ", "a PGP message"},
	{"H4sI", "base64 text of gzip (base64 -d decodes it)"},
	{"data:", "a data: URL"},
	{"1f8b08", "hexadecimal text of gzip (xxd -r -p decodes it)"},
	{"\\x1f8b08", "hexadecimal text of gzip, as PostgreSQL prints bytea"},
	{"\xff\xfe", "UTF-16 text"},
	{"\xfe\xff", "UTF-16 text"},
}

// IsComposeFile reports whether a file that begins with head is text that has
// Compose's services.
func IsComposeFile(head []byte) bool { return kindOf(head) == composeData }

// kindOf names what a file is that begins with head: "" when that is not known.
func kindOf(head []byte) string {
	for _, s := range signatures {
		if bytes.HasPrefix(head, []byte(s.head)) {
			return s.what
		}
	}
	switch text := strings.TrimPrefix(string(head), "\ufeff"); {
	case len(head) >= 512 && isTarHeader(head[:512]):
		return tarData
	case len(head) == 0:
		return ""
	case !isText(head):
		return ""
	default:
		return kindOfText(text)
	}
}

func isTarHeader(block []byte) bool {
	if bytes.HasPrefix(block[257:], []byte("ustar")) {
		return true
	}
	_, err := tar.NewReader(bytes.NewReader(block)).Next()
	return err == nil
}

// isText reports whether head, which may end within a character, is UTF-8 without
// control characters.
func isText(head []byte) bool {
	for len(head) > 0 {
		r, n := utf8.DecodeRune(head)
		switch {
		case r == utf8.RuneError && n == 1:
			return len(head) < utf8.UTFMax && !utf8.FullRune(head)
		case r < ' ' && r != '\n' && r != '\r' && r != '\t':
			return false
		}
		head = head[n:]
	}
	return true
}

func kindOfText(text string) string {
	start := strings.ToLower(strings.TrimSpace(text))
	switch {
	case strings.HasPrefix(start, "<!doctype html"), strings.HasPrefix(start, "<html"):
		return "an HTML page (was the address of a login or an error page downloaded?)"
	case strings.HasPrefix(start, "<"):
		return "XML"
	case strings.HasPrefix(start, "{"), strings.HasPrefix(start, "["):
		return "JSON"
	case hasLine(text, "services:"):
		return composeData
	case hasLine(text, "apiVersion:"):
		return "YAML for Kubernetes or Helm"
	case strings.HasPrefix(start, "---"), hasLine(text, "version:"), hasLine(text, "name:"):
		return "YAML"
	case start == "":
		return "blank text"
	default:
		return "plain text"
	}
}

// hasLine reports whether a line of text begins with prefix.
func hasLine(text, prefix string) bool {
	return strings.HasPrefix(text, prefix) || strings.Contains(text, "\n"+prefix)
}
