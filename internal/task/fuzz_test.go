package task_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Whatever a program said, what is made of it PostgreSQL takes and is as long as it may be.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "plain", "a\x00b", "\xff\xfe", "…………", "naïve ❤️", strings.Repeat("é", 50)} {
		for _, n := range []int{0, 1, 3, 10, 64} {
			f.Add(s, n)
		}
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		if limit < len("…") {
			limit = len("…")
		}
		for name, shorten := range map[string]func(string, int) string{"SafeText": task.SafeText, "Shorten": task.Shorten} {
			got := shorten(s, limit)
			if !utf8.ValidString(got) || strings.ContainsRune(got, 0) || len(got) > limit {
				t.Errorf("%s(%q, %d) is %q", name, s, limit, got)
			}
			if again := shorten(got, limit); again != got {
				t.Errorf("%s(%q, %d) is %q, and then %q", name, s, limit, got, again)
			}
		}
	})
}
