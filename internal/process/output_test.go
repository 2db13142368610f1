package process

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestEachLine(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		limit    int
		want     []string
	}{
		{"empty", "", 10, nil},
		{"lines", "a\nb\n", 10, []string{"a+0", "b+0"}},
		{"empty line", "a\n\nb\n", 10, []string{"a+0", "+0", "b+0"}},
		{"no newline at the end", "a\nb", 10, []string{"a+0", "b+0"}},
		{"cut", "abcdef\ng\n", 4, []string{"abcd+2", "g+0"}},
		{"as long as the limit", "abcd\n", 4, []string{"abcd+0"}},
		{"longer than the reader's buffer", strings.Repeat("z", 10000) + "\ny\n", 5000, []string{strings.Repeat("z", 5000) + "+5000", "y+0"}},
		{"newline at the buffer's end", strings.Repeat("z", 4095) + "\ny\n", 9000, []string{strings.Repeat("z", 4095) + "+0", "y+0"}},
		{"newline after the buffer's end", strings.Repeat("z", 4096) + "\ny\n", 9000, []string{strings.Repeat("z", 4096) + "+0", "y+0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			eachLine(strings.NewReader(tc.in), tc.limit, func(line []byte, cut int) {
				got = append(got, fmt.Sprintf("%s+%d", line, cut))
			})
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %.60q, want %.60q", got, tc.want)
			}
		})
	}
}
