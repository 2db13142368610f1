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
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Starting is over by the first of these, on a busy machine by the second.
var afterStart = []time.Duration{time.Second, 4 * time.Second}

// every is how long a process may stay large: a poll or a page of metrics
// touches a few megabytes.
const every = 15 * time.Second

// Start begins to keep this process small. The caller calls stop.
func Start() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		timer := time.NewTimer(afterStart[0])
		defer timer.Stop()
		for n := 1; ; n++ {
			select {
			case <-quit:
				return
			case <-timer.C:
			}
			// It is a matter of a few megabytes: where it does not work, all else does.
			_, _ = Release()
			if n < len(afterStart) {
				timer.Reset(afterStart[n])
			} else {
				timer.Reset(every)
			}
		}
	}()
	return func() { close(quit); <-done }
}

// Release lets go of the pages of the program's own file, and returns how many
// bytes of addresses they may have filled. Only what is mapped read-only and was
// never written to is let go of: it comes back from the file as it is.
func Release() (int, error) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, fmt.Errorf("release the program's pages: %w", err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0, fmt.Errorf("release the program's pages: %w", err)
	}
	defer f.Close()
	released := 0
	for _, m := range clean(f, self) {
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
// does code with a debugger's breakpoint. It takes little memory itself.
func clean(smaps io.Reader, file string) []mapping {
	var found []mapping
	candidate := false
	s := bufio.NewScanner(smaps)
	s.Buffer(make([]byte, 0, 1<<10), 8<<10)
	for s.Scan() {
		line := s.Bytes()
		if size, ok := bytes.CutPrefix(line, []byte("Anonymous:")); ok {
			if candidate && string(bytes.TrimSpace(size)) != "0 kB" {
				found = found[:len(found)-1]
			}
			continue
		}
		if len(line) == 0 || line[0] >= 'A' && line[0] <= 'Z' { // another key of the same mapping
			continue
		}
		// A new mapping: its file stands last; a deleted one's name says so.
		candidate = bytes.HasSuffix(line, []byte(" "+file)) && (bytes.Contains(line, []byte(" r-xp ")) || bytes.Contains(line, []byte(" r--p ")))
		if candidate {
			var m mapping
			if _, err := fmt.Sscanf(string(line), "%x-%x ", &m.start, &m.end); err != nil {
				candidate = false
				continue
			}
			found = append(found, m)
		}
	}
	return found
}
