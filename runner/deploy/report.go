package deploy

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Report is how a deployment tells people what it does: the timeline and the log.
// All that goes through it is masked. It is safe for concurrent use.
type Report struct {
	log *mask.Writer

	emitting sync.Mutex // events come from one goroutine at a time
	emit     func(task.Event)

	mu      sync.Mutex
	secrets []map[string]string
	words   []string
	masker  *mask.Masker
}

// NewReport returns a Report that writes the log to log and gives events to emit.
func NewReport(log io.Writer, emit func(task.Event)) *Report {
	return &Report{log: new(mask.Masker).Writer(log), emit: emit}
}

// Learn adds secrets, name to value, to what is masked from now on.
func (r *Report) Learn(secrets ...map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets = append(r.secrets, secrets...)
	r.setMasker()
}

// Common adds words that sentences about the release are made of, such as the names
// of its services: a secret that is one of them is hidden only where it cannot be
// anything else.
func (r *Report) Common(words ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.words = append(r.words, words...)
	r.setMasker()
}

func (r *Report) setMasker() {
	r.masker = mask.NewExcept(r.words, r.secrets...)
	r.log.SetMasker(r.masker)
}

// Masker returns what masks everything that was learned so far.
func (r *Report) Masker() *mask.Masker {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.masker
}

// Line masks text and makes one line of it, in this order: a secret whose blanks
// were joined would not be found any more. Cut text after that, never before.
func (r *Report) Line(text string) string { return OneLine(r.Masker().String(text)) }

// Event notes a step in the timeline.
func (r *Report) Event(p task.Phase, format string, args ...any) {
	text := r.Masker().String(fmt.Sprintf(format, args...))
	r.emitting.Lock()
	defer r.emitting.Unlock()
	r.emit(task.Event{Time: time.Now().UTC(), Component: "deploy", Phase: p, Text: text})
}

// Note writes a line of the agent's own into the log.
func (r *Report) Note(format string, args ...any) {
	_, _ = fmt.Fprintf(r.log, "wrktalk-deploy: "+format+"\n", args...) // a log that cannot be written stops nothing
}

// Log takes what a library says to people.
func (r *Report) Log() io.Writer { return r.log }

// flush passes on a last line that has no end.
func (r *Report) flush() { _ = r.log.Flush() } // a log that cannot be written stops nothing

// masked returns res without secrets, and its sentences on one line each.
func (r *Report) masked(res protocol.Result) protocol.Result {
	res.Message, res.Error = r.Line(res.Message), r.Line(res.Error)
	if res.LogTail != nil {
		res.LogTail = r.Masker().Strings(res.LogTail)
	}
	return res
}

// OneLine joins the lines of s, so that it fits a sentence.
func OneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Count returns n with its noun, whose plural ends with s.
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// CountAre is Count with a verb: "1 service is", "2 services are".
func CountAre(n int, noun string) string {
	if n == 1 {
		return Count(n, noun) + " is"
	}
	return Count(n, noun) + " are"
}

// Bounds of what is shown of a log that explains a failure.
const (
	TailLines    = 20
	MaxTailBytes = 256 << 10 // bytes read of a log
	MaxTailLine  = 1 << 10   // bytes of one line
	MaxQuote     = 300       // bytes quoted within a sentence
)

// Tail returns the last lines of text, masked and without empty ones. Text that is
// cut ends within a line, which is dropped: half a secret would not be found.
func (r *Report) Tail(text string, cut bool) []string {
	if cut {
		text = text[:strings.LastIndexByte(text, '\n')+1]
	}
	var lines []string
	for l := range strings.Lines(r.Masker().String(text)) {
		if l = strings.TrimRight(l, "\r\n\t "); l != "" {
			lines = append(lines, task.SafeText(l, MaxTailLine))
		}
	}
	return lines[max(0, len(lines)-TailLines):]
}

// SaidLast adds to sentence the last of the lines in tail, unless it is in it.
func SaidLast(sentence string, tail []string) string {
	if n := len(tail); n > 0 && !strings.Contains(sentence, tail[n-1]) {
		sentence += fmt.Sprintf(" (it said last: %s)", task.SafeText(OneLine(tail[n-1]), MaxQuote))
	}
	return sentence
}
