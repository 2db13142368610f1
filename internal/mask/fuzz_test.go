package mask_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
)

// In whatever pieces a secret comes, and whatever is around it, it does not get out, and
// the pieces make no difference.
func FuzzWriter(f *testing.F) {
	const secret = "canary-9f8e7d6c5b4a"
	f.Add("", "", 1)
	f.Add("password=", " and more\n", 7)
	f.Add("line\n\"", "\"\r\n\n", 30)
	f.Add(secret[:10], secret[10:], 3)
	f.Add(strings.Repeat("x", 64<<10-5), "y", 1000)
	f.Fuzz(func(t *testing.T, before, after string, size int) {
		text := before + secret + after
		m := mask.New(map[string]string{"DB_PASSWORD": secret})
		written := func(size int) string {
			var out bytes.Buffer
			w := m.Writer(&out)
			for rest := []byte(text); len(rest) > 0; {
				n := min(size, len(rest))
				if _, err := w.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			return out.String()
		}
		whole, pieces := written(len(text)), written(max(1, size%1000))
		if strings.Contains(whole, secret) || strings.Contains(m.String(text), secret) {
			t.Errorf("the secret got out: %q", whole)
		}
		if whole != pieces {
			t.Errorf("whole it is %q, in pieces %q", whole, pieces)
		}
	})
}

// What is learned of a text of NAME=VALUE lines hides these values from it.
func FuzzPairs(f *testing.F) {
	for _, s := range []string{"", "A=b", "TOKEN=canary-9f8e7d6c", "x PASSWORD='a b c d' y", "=\n==", "API_KEY=\x00\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m := mask.New(mask.Pairs(text))
		if once := m.String(text); m.String(once) != once && !strings.Contains(text, "$") {
			t.Errorf("%q is masked as %q, and that as %q", text, once, m.String(once))
		}
	})
}
