package lean

import (
	"slices"
	"strings"
	"testing"
)

const smaps = `00400000-00c00000 r-xp 00000000 fd:01 42 /usr/bin/agent
Rss:                8000 kB
Anonymous:             0 kB
00c00000-01400000 r--p 00800000 fd:01 42 /usr/bin/agent
Anonymous:             0 kB
01400000-01480000 r--p 01000000 fd:01 42 /usr/bin/agent
Anonymous:           512 kB
01480000-01500000 rw-p 01080000 fd:01 42 /usr/bin/agent
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 fd:01 43 /other/usr/bin/agent
Anonymous:             0 kB
7f0000002000-7f0000003000 r--p 00000000 00:00 0
Anonymous:             0 kB
`

func TestOnlyCleanPagesOfTheProgramAreLetGo(t *testing.T) {
	want := []mapping{{0x400000, 0xc00000}, {0xc00000, 0x1400000}}
	if got := clean(strings.NewReader(smaps), "/usr/bin/agent"); !slices.Equal(got, want) {
		t.Errorf("clean returns %x, want %x", got, want)
	}
}

// What was let go of comes back: the test goes on running.
func TestTheProgramOutlivesIt(t *testing.T) {
	for range 3 {
		n, err := Release()
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			t.Error("nothing of the program was let go of")
		}
	}
	stop := Start()
	stop()
}
