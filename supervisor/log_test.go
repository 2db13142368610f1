package supervisor

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestForwardsLogs(t *testing.T) {
	const (
		jsonLine = `{"time":"2026-11-23T13:39:15Z","level":"INFO","msg":"claimed","component":"fetcher","task":"t1"}`
		textLine = `time=2026-11-23T13:39:15Z level=INFO msg=claimed component=fetcher task=t2`
	)
	long := strings.Repeat("y", maxLine+5)
	stderr := jsonLine + "\n" + textLine + "\n\nplain words\n{not json}\n" + long + "\nwithout end"
	a := launch(t, Config{Components: []Component{comp("fetcher", "print", stderr, "to stdout\n")}})
	a.awaitReady(t)

	for _, l := range []string{jsonLine, textLine} {
		a.out.await(t, 1, "raw", l)
	}
	for _, want := range []struct{ msg, level string }{
		{"plain words", "ERROR"},
		{"{not json}", "ERROR"},
		{long[:maxLine] + " [5 bytes cut]", "ERROR"},
		{"to stdout", "INFO"},
	} {
		r := a.out.await(t, 1, "msg", want.msg)
		if r.text("component") != "fetcher" || r.text("level") != want.level {
			t.Errorf("%.20q is logged as component %q, level %q", want.msg, r.text("component"), r.text("level"))
		}
	}
	if n := a.out.count("component", "fetcher", "msg", "without end"); n != 0 {
		t.Errorf("a line was forwarded before its end")
	}
	a.signals <- syscall.SIGKILL // any signal but SIGHUP
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
	// It ends where the component's own next record begins.
	r := a.out.await(t, 1, "component", "fetcher", "level", "ERROR", "msg", lastPart(a.out, "without end"))
	if !strings.HasPrefix(r.text("msg"), "without end") {
		t.Errorf("the unfinished line is lost")
	}
}

func lastPart(o *output, prefix string) string {
	for _, l := range o.all() {
		if m := parse(l).text("msg"); strings.HasPrefix(m, prefix) {
			return m
		}
	}
	return prefix
}

// A panic's trace is in the log in full, in order, and the death report says
// what it was. Exit code 2, which the runtime ends with, is not taken for a
// wrong configuration.
func TestAPanicIsVisible(t *testing.T) {
	a := launch(t, Config{Components: []Component{comp("runner", "panic", "disk on fire")}, Restart: quick})
	died := a.out.await(t, 1, "msg", "component died", "component", "runner")
	if died.text("exit") != "exit status 2" || died.text("panic") != "panic: cannot go on: disk on fire" {
		t.Errorf("death is reported as %v", died)
	}
	if tail := died.text("stderr"); !strings.Contains(tail, "goroutine ") {
		t.Errorf("the last lines of stderr are %q", tail)
	}
	var trace []string
	for _, l := range a.out.all() {
		r := parse(l)
		if r.text("msg") == "component died" {
			break
		}
		if r.text("component") == "runner" && r.text("level") == "ERROR" {
			trace = append(trace, r.text("msg"))
		}
	}
	text := strings.Join(trace, "\n")
	first := slices.Index(trace, "panic: cannot go on: disk on fire")
	if first < 0 || !strings.Contains(text[len(strings.Join(trace[:first], "\n")):], "main.main()") {
		t.Errorf("the trace is not complete:\n%s", text)
	}
	a.out.await(t, 3, "msg", "component died") // at the usual pace
	if n := a.out.count("msg", "component refuses its configuration or arguments: correct them and restart the agent"); n != 0 {
		t.Errorf("a panic was taken for a wrong configuration")
	}
}

// A component dies while the log is slow, and what it started in a session of
// its own keeps its standard error open. The death is noticed all the same,
// and no word of what it wrote before is lost.
func TestStderrBeforeADeathIsComplete(t *testing.T) {
	out := newOutput()
	out.hold, out.gate = "word 0", make(chan struct{})
	a := prepare(t, Config{
		Components: []Component{comp("runner", "leave")}, Output: out,
		Restart: RestartPolicy{Min: time.Hour, Max: time.Hour},
	})
	a.logMux.blockTimeout = patience
	a.run(t)
	pid := out.await(t, 1, "msg", "component started").pid()
	runner := open(t, pid)
	open(t, out.await(t, 1, "msg", "holding").pid()) // which ends it with the test
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	runner.awaitEnd(t)
	close(out.gate)

	died := out.await(t, 1, "msg", "component died")
	if tail := died.text("stderr"); !strings.HasSuffix(tail, fmt.Sprintf("word %d", words-1)) {
		t.Errorf("the end of standard error is %q", tail)
	}
	arrived := 0
	for _, l := range out.all() {
		if parse(l).text("msg") == fmt.Sprintf("word %d", arrived) {
			arrived++
		}
	}
	if arrived != words {
		t.Errorf("%d of %d words arrived in order", arrived, words)
	}
}

// Components that fill the queue do not crowd out what the supervisor has to
// say, such as that one of them died.
func TestASlowLogKeepsTheSupervisorsOwnRecords(t *testing.T) {
	out := newOutput()
	out.hold, out.gate = "word 0", make(chan struct{})
	m := newLogMux(out, slog.New(slog.NewJSONHandler(out, nil)))
	go m.run()
	for n := range queueLength {
		m.enqueue(logEntry{line: fmt.Appendf(nil, "{\"msg\":\"word %d\"}\n", n)}, true)
	}
	m.stalled.Store(true) // nobody waits any more
	m.enqueue(logEntry{line: []byte("{\"msg\":\"one more\"}\n")}, true)
	m.enqueue(logEntry{line: []byte("{\"msg\":\"and another\"}\n")}, true)
	m.logger().Warn("component died")
	close(out.gate)
	out.await(t, 1, "msg", "component died")
	close(m.quit)
	<-m.done
}

// Nobody reads the log: the component goes on, and so does the supervisor.
func TestAStalledLogStopsNobody(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	t.Cleanup(func() { r.Close() }) // first: lets the blocked write go
	a := prepare(t, Config{Components: []Component{comp("runner", "flood")}, Output: w})
	a.logMux.blockTimeout = 20 * time.Millisecond
	a.run(t)
	a.awaitReady(t)
	if lost := a.logMux.lost.Load(); lost == 0 {
		t.Errorf("nothing was lost of 4 MiB that nobody read")
	}
	r.Close()
	a.signals <- syscall.SIGTERM
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
}

func TestIsRecord(t *testing.T) {
	for line, want := range map[string]bool{
		`{"msg":"x"}`:    true,
		`time=2026 msg=`: true,
		`{"msg":"x"`:     false,
		`{`:              false,
		`[1]`:            false,
		`panic: x`:       false,
		`timeout`:        false,
		``:               false,
	} {
		if got := isRecord([]byte(line)); got != want {
			t.Errorf("isRecord(%q) = %v, want %v", line, got, want)
		}
	}
}
