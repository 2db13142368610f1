package protocol_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

func TestRollbackTarget(t *testing.T) {
	// An entry is a release's name; r: was brought up by a rollback; -: is not
	// kept any more.
	for _, c := range []struct {
		history string
		want    int
	}{
		{"", -1},
		{"a", -1},
		{"a a", -1},
		{"a b", 0},
		{"a b b", 0},
		{"a b c", 1},
		{"a b ra", -1},  // b was left behind
		{"a b c rb", 0}, // c was left behind
		{"a b c rb ra", -1},
		{"a b c rb d", 1}, // d failed the same way: b again
		{"a -b c", 0},
		{"-a b", -1},
	} {
		entries := strings.Fields(c.history)
		name := func(e string) string { return strings.TrimLeft(e, "r-") }
		got := protocol.RollbackTarget(entries, name,
			func(e string) bool { return strings.HasPrefix(e, "r") },
			func(e string) bool { return !strings.HasPrefix(e, "-") })
		if got != c.want && (got < 0 || c.want < 0 || name(entries[got]) != name(entries[c.want])) {
			t.Errorf("%q: %d, want %d", c.history, got, c.want)
		}
	}
}

func TestReadHistory(t *testing.T) {
	dir := t.TempDir()
	if list, err := protocol.ReadHistory(dir); err != nil || list != nil {
		t.Error(list, err)
	}
	if err := os.WriteFile(filepath.Join(dir, protocol.HistoryFile), []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := protocol.ReadHistory(dir); err == nil || !strings.Contains(err.Error(), protocol.HistoryFile) {
		t.Error(err)
	}
}
