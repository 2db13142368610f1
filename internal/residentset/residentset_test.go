package residentset_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/residentset"
)

// fileMapped returns how many kB of files are mapped and resident.
func fileMapped(t *testing.T) (kB int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "RssFile: %d kB", &kB); err == nil {
			return kB
		}
	}
	t.Fatal("the kernel does not say how much of files is resident")
	return 0
}

// What was unmapped comes back: the test goes on running.
func TestTheProgramRunsOnAfterItsPagesAreUnmapped(t *testing.T) {
	before := fileMapped(t)
	if err := residentset.Trim(); err != nil {
		t.Fatal(err)
	}
	if after := fileMapped(t); after >= before {
		t.Errorf("%d kB of the program are resident, before it was trimmed %d kB", after, before)
	}
	for range 3 {
		if err := residentset.Trim(); err != nil {
			t.Fatal(err)
		}
	}
	residentset.StartTrimming()()
}
