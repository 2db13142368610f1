package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPrioritiesForTheJournal(t *testing.T) {
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"json": func(b *bytes.Buffer) slog.Handler {
			return slog.NewJSONHandler(journalWriter{b}, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
		"text": func(b *bytes.Buffer) slog.Handler {
			return slog.NewTextHandler(journalWriter{b}, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
	} {
		var b bytes.Buffer
		log := slog.New(handler(&b))
		log.Debug("d", "level", "ERROR")
		log.Info("i")
		log.Warn("w")
		log.Error("e")
		fmt.Fprintln(journalWriter{&b}, "wrktalk-agent run: it went wrong")
		var got []string
		for line := range strings.Lines(b.String()) {
			got = append(got, line[:3])
		}
		if strings.Join(got, "") != "<7><6><4><3><3>" {
			t.Errorf("%s: %q", name, b.String())
		}
	}
}

func TestOnlyTheJournalGetsPriorities(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(w.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if _, ok := journalled(w, []string{fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino)}).(journalWriter); !ok {
		t.Error("the journal's own stream gets no priorities")
	}
	// A component's standard error is the supervisor's pipe: only the variable is inherited.
	for _, environ := range [][]string{nil, {fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino+1)}} {
		if out := journalled(w, environ); out != w {
			t.Errorf("%q: %T", environ, out)
		}
	}
}
