package deploy_test

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

func TestTail(t *testing.T) {
	r := deploy.NewReport(new(bytes.Buffer), nil)
	r.Learn(map[string]string{"DB_PASSWORD": secret})
	var numbered []string
	for i := range deploy.TailLines + 5 {
		numbered = append(numbered, fmt.Sprint("line ", i))
	}
	long := strings.Repeat("x", deploy.MaxTailLine-8)
	for name, c := range map[string]struct {
		text string
		cut  bool
		want []string
	}{
		"nothing":                   {"", false, nil},
		"empty lines":               {"a\n\n \t\r\nb \r\n", false, []string{"a", "b"}},
		"last line without end":     {"a\nb", false, []string{"a", "b"}},
		"cut within a line":         {"a\nopen  ses", true, []string{"a"}},
		"cut, and no whole line":    {"open  ses", true, nil},
		"masked":                    {"with " + secret + "\n", false, []string{"with ${DB_PASSWORD}"}},
		"too many":                  {strings.Join(numbered, "\n"), false, numbered[5:]},
		"a long line, masked first": {long + secret, false, []string{long + "${DB_…"}},
	} {
		if got := r.Tail(c.text, c.cut); strings.Join(got, "|") != strings.Join(c.want, "|") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestSaidLast(t *testing.T) {
	for _, c := range []struct {
		sentence string
		tail     []string
		want     string
	}{
		{"web ended", nil, "web ended"},
		{"web ended", []string{"a", "no  table"}, "web ended (it said last: no table)"},
		{"web ended: no table", []string{"no table"}, "web ended: no table"},
		{"web ended", []string{strings.Repeat("x", 400)}, "web ended (it said last: " + strings.Repeat("x", deploy.MaxQuote-3) + "…)"},
	} {
		if got := deploy.SaidLast(c.sentence, c.tail); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestCount(t *testing.T) {
	for want, got := range map[string]string{
		"0 services": deploy.Count(0, "service"), "1 service": deploy.Count(1, "service"), "2 services": deploy.Count(2, "service"),
		"1 service is": deploy.CountAre(1, "service"), "2 services are": deploy.CountAre(2, "service"),
		"a b c": deploy.OneLine(" a\n\tb  c\r\n"),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestLearnLater masks with what is learned while the deployment runs.
func TestLearnLater(t *testing.T) {
	var log bytes.Buffer
	var events []string
	r := deploy.NewReport(&log, func(e task.Event) { events = append(events, e.Text) })
	if r.Line("none  yet") != "none yet" {
		t.Error("what knows no secrets does not work")
	}
	r.Learn(map[string]string{"A_TOKEN": "first-secret"})
	r.Learn(map[string]string{"B_TOKEN": secret}, nil)
	const text, want = "first-secret and\n" + secret, "${A_TOKEN} and ${B_TOKEN}"
	r.Note("%s", text)
	r.Event(task.PhaseWaiting, "%s", text)
	if got := r.Line(text); got != want {
		t.Error(got)
	}
	if got := log.String(); got != "wrktalk-deploy: "+strings.Replace(want, " and ", " and\n", 1)+"\n" {
		t.Error(got)
	}
	if len(events) != 1 || deploy.OneLine(events[0]) != want {
		t.Error(events)
	}
}

// TestEventsOneAtATime has a second goroutine report while the first is at it.
func TestEventsOneAtATime(t *testing.T) {
	var inside, most atomic.Int32
	began := make(chan struct{}, 2)
	r := deploy.NewReport(new(bytes.Buffer), func(task.Event) {
		most.Store(max(most.Load(), inside.Add(1)))
		began <- struct{}{}
		for range 1000 {
			runtime.Gosched() // room for the other one
		}
		inside.Add(-1)
	})
	var both sync.WaitGroup
	both.Go(func() { r.Event(task.PhaseWaiting, "one") })
	<-began
	both.Go(func() { r.Event(task.PhaseWaiting, "two") })
	both.Wait()
	if most.Load() != 1 {
		t.Errorf("%d events at a time", most.Load())
	}
}
