package testenv

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var exit struct {
	sync.Mutex
	funcs []func()
}

// AtExit registers f to run when the test process ends in order; the last
// registered runs first. It only has an effect below Main.
func AtExit(f func()) {
	exit.Lock()
	defer exit.Unlock()
	exit.funcs = append(exit.funcs, f)
}

// Main runs the tests of a package and then stops every server that they
// share. A package whose tests call Database needs it:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// A process that ends in any other way leaves no server behind either, only a
// directory that the next run removes.
func Main(m *testing.M) {
	code := m.Run()
	exit.Lock()
	funcs := exit.funcs
	exit.funcs = nil
	exit.Unlock()
	for i := len(funcs) - 1; i >= 0; i-- {
		funcs[i]()
	}
	os.Exit(code)
}

// AwaitReadable waits until a descriptor can be read from: one of a process, by
// pidfd_open, when that has ended.
func AwaitReadable(fd int, limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		left := time.Until(end)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(left.Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR): // the runtime's own signals do that
		case err != nil:
			return err
		case n == 1:
			return nil
		case left <= 0:
			return fmt.Errorf("not readable after %s", limit)
		}
	}
}

// Missing ends a test whose server is not installed here: skipped on a laptop,
// failed where the environment variable CI is set.
func Missing(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("need %s for this test: %v", what, err)
	}
	t.Skipf("need %s for this test: %v", what, err)
}
