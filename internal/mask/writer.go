package mask

import (
	"bytes"
	"io"
	"sync"
)

// maxLine bounds how much of one line a Writer holds back.
const maxLine = 64 << 10

// Writer masks what is written to it, line by line, so that a secret which
// arrives in several pieces is still recognised. It is safe for concurrent
// use.
type Writer struct {
	out    io.Writer
	masker *Masker

	mu   sync.Mutex
	line []byte
	cut  bool // the rest of the current line is dropped
}

// Writer returns a Writer in front of out. Of a line longer than 64 KiB only
// the beginning is passed on. The caller calls Flush after the last line.
func (m *Masker) Writer(out io.Writer) *Writer { return &Writer{out: out, masker: m} }

// Write takes p whole, unless out fails.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for rest := p; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte{'\n'})
		rest = after
		if !w.cut {
			room := maxLine - len(w.line)
			if len(part) > room {
				w.line = append(w.line, part[:room]...)
				if err := w.emit(w.head() + "…\n"); err != nil {
					return 0, err
				}
				w.cut = true
			} else {
				w.line = append(w.line, part...)
			}
		}
		if !ended {
			break
		}
		if !w.cut {
			if err := w.emit(w.masker.String(string(w.line)) + "\n"); err != nil {
				return 0, err
			}
		}
		w.cut = false
	}
	return len(p), nil
}

// Flush passes on a last line that has no line end.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.line) == 0 {
		return nil
	}
	return w.emit(w.masker.String(string(w.line)))
}

// SetMasker replaces the masker, for text that follows; a secret that is
// learned later was never in what came before.
func (w *Writer) SetMasker(m *Masker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.masker = m
}

// head returns the masked beginning of an overlong line, without its last
// bytes: they may be the first part of a secret.
func (w *Writer) head() string {
	s := w.masker.String(string(w.line))
	if w.masker == nil {
		return s
	}
	return s[:max(0, len(s)-w.masker.longest)]
}

func (w *Writer) emit(s string) error {
	w.line = w.line[:0]
	_, err := io.WriteString(w.out, s)
	return err
}
