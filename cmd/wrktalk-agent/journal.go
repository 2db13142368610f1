package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// journalled returns what a program writes its log to: f itself, or, where f leads to
// systemd's journal, a writer that gives each line the priority of its level, so
// that `journalctl -p warning` finds what it should.
func journalled(f *os.File, environ []string) io.Writer {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return f
	}
	for _, v := range environ {
		stream, ok := strings.CutPrefix(v, "JOURNAL_STREAM=")
		if ok && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino) {
			return journalWriter{f}
		}
	}
	return f
}

// journalWriter puts sd-daemon(3)'s priority before each line. Every call of Write
// takes whole lines, as those of slog's handlers and of package fmt do.
type journalWriter struct{ w io.Writer }

// recordLevel finds the level in a record of slog's JSON or text handler.
var recordLevel = regexp.MustCompile(`^(?:\{"time":"[^"]*","level":"|time=\S+ level=)([A-Z]+)`)

func (j journalWriter) Write(p []byte) (int, error) {
	var out bytes.Buffer
	for line := range bytes.Lines(p) {
		out.WriteString(priority(line))
		out.Write(line)
	}
	if _, err := j.w.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// priority returns the prefix of a line. What is no record is a command's error.
func priority(line []byte) string {
	m := recordLevel.FindSubmatch(line)
	if m == nil {
		return "<3>"
	}
	switch string(m[1]) {
	case "DEBUG":
		return "<7>"
	case "INFO":
		return "<6>"
	case "WARN":
		return "<4>"
	default:
		return "<3>"
	}
}
