package packages

import (
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/stateformat"
)

// Packages ask before anything of the agent is there that they could ask.
func TestPackagesKnowTheFormatOfTheState(t *testing.T) {
	t.Parallel()
	script, err := os.ReadFile("../../packaging/scripts/preinstall.sh")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^format=(\d+)$`).FindSubmatch(script)
	if m == nil || string(m[1]) != strconv.Itoa(stateformat.Current) {
		t.Errorf("preinstall.sh says %q, the agent writes format %d", m, stateformat.Current)
	}
}
