package supervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"golang.org/x/sys/unix"
)

const (
	maxLine    = 16 << 10  // bytes of a component's line that are forwarded
	tailLines  = 10        // lines of standard error in a death report
	tailLine   = 400       // bytes of each
	drainBytes = 256 << 10 // read from a dead component's pipe; its buffer holds less
)

// pipeReader reads a component's pipe. Once its deadline has passed it reads
// what is in the pipe already and then ends: so everything a dead component
// wrote is seen, and a grandchild that keeps the pipe open holds nobody up.
type pipeReader struct {
	*os.File
	drained int
}

func (p *pipeReader) Read(b []byte) (int, error) {
	n, err := p.File.Read(b)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	raw, err := p.File.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	if err := raw.Control(func(fd uintptr) { n, readErr = unix.Read(int(fd), b) }); err != nil {
		return 0, err
	}
	if p.drained += n; readErr != nil || n <= 0 || p.drained > drainBytes {
		return 0, io.EOF
	}
	return n, nil
}

// drain makes a blocked Read return and later ones take only what is there.
func (p *pipeReader) drain() { _ = p.SetReadDeadline(time.Unix(1, 0)) }

// eachLine calls f for every line of r, without its newline, and for an
// unfinished last one. Of a longer line only limit bytes are kept; cut is how
// many were not. The line is valid during the call alone.
func eachLine(r io.Reader, limit int, f func(line []byte, cut int)) {
	br := bufio.NewReaderSize(r, 4<<10)
	var line []byte
	cut := 0
	for {
		frag, err := br.ReadSlice('\n')
		frag = bytes.TrimSuffix(frag, []byte{'\n'})
		fits := min(len(frag), limit-len(line))
		line = append(line, frag[:fits]...)
		cut += len(frag) - fits
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err == nil || len(line) > 0 {
			f(line, cut)
		}
		if err != nil {
			return
		}
		line, cut = line[:0], 0
	}
}

// isRecord reports whether line was written by a slog handler.
func isRecord(line []byte) bool {
	return bytes.HasPrefix(line, []byte("time=")) ||
		bytes.HasPrefix(line, []byte("{")) && json.Valid(line)
}

// forward copies a component's output to the log until it ends. Lines that
// are no records get the given level; seen, if not nil, is shown every line.
func (s *Supervisor) forward(r io.Reader, name string, level slog.Level, seen func(line []byte)) {
	h := s.relay.log.Handler().WithAttrs([]slog.Attr{slog.String("component", name)})
	eachLine(r, maxLine, func(line []byte, cut int) {
		if seen != nil {
			seen(line)
		}
		if cut == 0 && isRecord(line) {
			s.relay.put(entry{line: append(bytes.Clone(line), '\n')}, true)
			return
		}
		if len(line) == 0 || !h.Enabled(context.Background(), level) {
			return
		}
		text := task.SafeText(string(line), maxLine+64)
		if cut > 0 {
			text += fmt.Sprintf(" [%d bytes cut]", cut)
		}
		rec := slog.NewRecord(time.Now(), level, text, 0)
		s.relay.put(entry{record: &rec, to: h}, true)
	})
}

// lastWords is what a component's standard error tells of its death.
type lastWords struct {
	trace string   // the first line of a panic or a fatal error of the Go runtime
	tail  []string // the last lines
}

// see is shown every line.
func (w *lastWords) see(line []byte) {
	if len(line) == 0 {
		return
	}
	text := task.SafeText(string(line), tailLine)
	if len(w.tail) == tailLines {
		w.tail = append(w.tail[:0], w.tail[1:]...)
	}
	w.tail = append(w.tail, text)
	if w.trace == "" && isTrace(line) {
		w.trace = text
	}
}

// attrs are the keys of a death report.
func (w *lastWords) attrs() []any {
	var attrs []any
	if w.trace != "" {
		attrs = append(attrs, "panic", w.trace)
	}
	if len(w.tail) > 0 {
		attrs = append(attrs, "stderr", strings.Join(w.tail, "\n"))
	}
	return attrs
}

// isTrace reports whether the Go runtime began to print a trace with line. A
// process that ends so exits with 2, like one that refuses its configuration.
func isTrace(line []byte) bool {
	for _, p := range []string{"panic: ", "fatal error: ", "SIGQUIT: "} {
		if bytes.HasPrefix(line, []byte(p)) {
			return true
		}
	}
	return false
}
