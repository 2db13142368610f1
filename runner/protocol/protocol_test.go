package protocol_test

import (
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

func TestBundleName(t *testing.T) {
	for _, c := range []struct{ version, sum, want string }{
		{"2.5.0", strings.Repeat("ab", 32), "2.5.0-abababababab"},
		{"../../etc", "ABC", "etc-abc"},
		{".hidden", "x/y", "hidden-xy"},
		{"", "", "unnamed-nodigest"},
		{"…", "/", "unnamed-nodigest"},
		{strings.Repeat("v", 300), "ab", strings.Repeat("v", 60) + "-ab"},
	} {
		if got := protocol.BundleName(c.version, c.sum); got != c.want {
			t.Errorf("%q, %q: %q, want %q", c.version, c.sum, got, c.want)
		}
	}
}
