package controlpipe

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// NotifySocket returns the address of the service manager's notification
// socket, "" when no service manager asked to be notified.
func NotifySocket() string { return os.Getenv("NOTIFY_SOCKET") }

// WatchdogInterval returns within which time the service manager expects to
// hear from this process, 0 when it does not.
func WatchdogInterval() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 || usec > int64(24*time.Hour/time.Microsecond) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}

// Notify sends state, in the form of sd_notify(3), to the datagram socket; a
// leading @ names an abstract one. With socket "" it does nothing.
func Notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	defer conn.Close()
	// A service manager that does not read must not hold us up.
	if err := conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}
