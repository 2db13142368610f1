// Package lean keeps a process small that is idle most of the time.
//
// A page of the program's own file counts as a process's memory from the first
// time it is touched. Starting touches most of the file, because the kernel
// maps what lies around as well; waiting needs little of it. So once the
// process has started, and now and then after it has worked, it lets go of
// those pages; they stay in the page cache, and what is needed is mapped again
// without reading anything.
package lean

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	afterStart = 5 * time.Second  // starting is over by then
	every      = 10 * time.Minute // a run in between is over, and touched much
)

// Start begins to keep this process small. The caller calls stop.
func Start() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		timer := time.NewTimer(afterStart)
		defer timer.Stop()
		for {
			select {
			case <-quit:
				return
			case <-timer.C:
			}
			// It is a matter of a few megabytes: where it does not work, all else does.
			_, _ = Release()
			timer.Reset(every)
		}
	}()
	return func() { close(quit); <-done }
}

// Release lets go of the pages of the program's own file, and returns how many
// bytes of it were mapped by address. Only what is mapped read-only and was
// never written to is let go of: it comes back from the file as it is.
func Release() (int, error) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, fmt.Errorf("release the program's pages: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return 0, fmt.Errorf("release the program's pages: %w", err)
	}
	released := 0
	for _, m := range clean(maps, self) {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
		if errno != 0 {
			return released, fmt.Errorf("release the program's pages: %w", errno)
		}
		released += int(m.end - m.start)
	}
	return released, nil
}

// mapping is a part of the address space.
type mapping struct{ start, end uintptr }

// clean returns the mappings of file that cannot be written to and hold no page
// of their own: a position-independent program's relocated data does, and so
// does code with a debugger's breakpoint.
func clean(smaps []byte, file string) []mapping {
	var found []mapping
	candidate := false
	for s := bufio.NewScanner(bytes.NewReader(smaps)); s.Scan(); {
		line := s.Text()
		var m mapping
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &m.start, &m.end, &perms); n == 3 {
			// The file stands after the inode; a deleted one's name says so in both.
			candidate = (perms == "r-xp" || perms == "r--p") && strings.HasSuffix(line, " "+file)
			if candidate {
				found = append(found, m)
			}
			continue
		}
		if size, ok := strings.CutPrefix(line, "Anonymous:"); ok && candidate && strings.TrimSpace(size) != "0 kB" {
			found = found[:len(found)-1]
		}
	}
	return found
}
