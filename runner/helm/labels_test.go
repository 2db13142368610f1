package helm

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

func TestLabelValue(t *testing.T) {
	inputs := []string{
		"", "1397f0f1-0000-4000-8000-000000000000", "2.5.0", "v2.5.0-rc.1",
		"2026-11-23 13:39:15.123456+00", "2026-11-23 13:39:15.123456-00", "2026-11-23_13_39_15.123456_00",
		strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 65), "-", "_", "été", "a b", "a\tb", "a-",
	}
	seen := map[string]string{}
	for _, in := range inputs {
		out := labelValue(in)
		if errs := validation.IsValidLabelValue(out); len(errs) > 0 {
			t.Errorf("%q becomes %q: %v", in, out, errs)
		}
		if other, ok := seen[out]; ok {
			t.Errorf("%q and %q both become %q", in, other, out)
		}
		seen[out] = in
		// What was encoded must not pass for plain: then two texts would meet.
		if again := labelValue(out); out != in && again == out {
			t.Errorf("%q, the encoding of %q, encodes to itself", out, in)
		}
	}
	for _, plain := range inputs[:4] {
		if labelValue(plain) != plain {
			t.Errorf("%q becomes %q", plain, labelValue(plain))
		}
	}
}
