package controlpipe

import (
	"bytes"
	"testing"
	"unicode/utf8"
)

// A component that has gone mad may write anything.
func FuzzParseReport(f *testing.F) {
	for _, s := range []string{"", "{}", `{"ready":true}`, `{"reason":"a\u0000b"}`, `{"alive":60000000000}`, `{"sample":{}}`, "[1]", "null"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := ParseReport(line)
		if err != nil {
			return
		}
		if r.Status == nil && r.Sample == nil && r.Alive <= 0 {
			t.Errorf("%q says nothing", line)
		}
		if r.Status != nil && (len(r.Status.Reason) > maxReason || !utf8.ValidString(r.Status.Reason)) {
			t.Errorf("the reason is %q", r.Status.Reason)
		}
	})
}

// So may whoever starts a component in the supervisor's place.
func FuzzReceive(f *testing.F) {
	var sent bytes.Buffer
	if err := Send(&sent, 0, []byte("{}")); err != nil {
		f.Fatal(err)
	}
	f.Add(sent.Bytes())
	f.Add([]byte{})
	f.Add(append(bytes.Clone(magic[:]), bytes.Repeat([]byte{0xff}, 12)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, snapshot, err := receive(bytes.NewReader(data))
		if err == nil && len(snapshot) > len(data) {
			t.Errorf("%q holds %d bytes", data, len(snapshot))
		}
	})
}
