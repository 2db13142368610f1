package process

import (
	"bytes"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

const (
	tailLines = 10  // lines that a Tail keeps
	tailLine  = 400 // bytes of each
)

// Tail is what the end of a child's standard error tells of its death. It
// belongs to the function that reads the lines until the child is done.
type Tail struct {
	Crash string   // the first line of a panic or a fatal error of the Go runtime, "" for none
	Lines []string // the last lines that are not empty
}

// Add takes the next line, without its newline.
func (t *Tail) Add(line []byte) {
	if len(line) == 0 {
		return
	}
	text := task.SafeText(string(line), tailLine)
	if len(t.Lines) == tailLines {
		t.Lines = append(t.Lines[:0], t.Lines[1:]...)
	}
	t.Lines = append(t.Lines, text)
	if t.Crash == "" && isCrash(line) {
		t.Crash = text
	}
}

// isCrash reports whether the Go runtime began to print a trace with line.
func isCrash(line []byte) bool {
	for _, p := range []string{"panic: ", "fatal error: ", "SIGQUIT: "} {
		if bytes.HasPrefix(line, []byte(p)) {
			return true
		}
	}
	return false
}
