package task_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// An error ends with what it was, which must survive.
func TestShorten(t *testing.T) {
	long := "where it was: " + strings.Repeat("ä", 1000) + ": field is immutable"
	for limit := 3; limit < 100; limit++ { // the mark alone takes three
		if got := task.Shorten(long, limit); len(got) > limit || !utf8.ValidString(got) {
			t.Errorf("%d: %q", limit, got)
		}
	}
	if got := task.Shorten(long, 100); !strings.HasPrefix(got, "where it was: ä") || !strings.HasSuffix(got, "ä: field is immutable") || !strings.Contains(got, " … ") {
		t.Errorf("%q", got)
	}
	if got := task.Shorten("a\x00b\xff", 20); got != "a\uFFFDb\uFFFD" {
		t.Errorf("%q", got)
	}
}
