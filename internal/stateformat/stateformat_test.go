package stateformat_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/stateformat"
)

func TestStateOfANewerAgentIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := stateformat.Check(dir); err != nil {
		t.Errorf("without state: %v", err)
	}
	for range 2 {
		if err := stateformat.Record(dir); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, stateformat.Name)
	for text, want := range map[string]string{
		"1\n":                                 "",
		strconv.Itoa(stateformat.Current):     "",
		strconv.Itoa(stateformat.Current + 1): "a newer version left it",
		"":                                    "holds no number",
		"-1":                                  "holds no number",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{stateformat.Check(dir), stateformat.Record(dir)} {
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %q", text, err, want)
			}
		}
		after, err := os.ReadFile(file)
		if err != nil || want != "" && string(after) != text {
			t.Errorf("%q became %q (%v)", text, after, err)
		}
	}
}
