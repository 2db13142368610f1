package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// errNoWebServer says that nginx or HAProxy is not installed.
var errNoWebServer = errors.New("no such web server on this machine")

// webPatience bounds how long a web server may take to start, reload or stop.
const webPatience = 2 * time.Minute

// webServer is a server in the foreground, a child of this process that ends
// with it.
type webServer struct {
	dir     string // configuration, logs and sockets; removed by close
	process *os.Process
	ended   chan struct{} // closed when the process has been waited for
	outcome error         // of the process; valid once ended is closed
}

// startWebServer runs program in the foreground. The thread that forks is kept
// until the child has ended: the parent-death signal is bound to it.
func startWebServer(dir, program string, args ...string) (*webServer, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + program); err != nil {
			return nil, fmt.Errorf("find %s: %w: install the Debian package %s", program, errNoWebServer, program)
		}
	}
	out, err := os.Create(filepath.Join(dir, "output.log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}
	// SIGTERM, not SIGKILL: both masters take their workers along on it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}

	s := &webServer{dir: dir, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		s.outcome = cmd.Wait()
		close(s.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	s.process = cmd.Process
	return s, nil
}

// await calls ready until it returns nil, the server has ended or patience is
// over.
func (s *webServer) await(what string, ready func() error) error {
	deadline := time.NewTimer(webPatience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return fmt.Errorf("%s: the server ended (%v): %s", what, s.outcome, s.output())
		case <-deadline.C:
			return fmt.Errorf("%s: still %w after %s: %s", what, err, webPatience, s.output())
		}
	}
}

// output returns what the server printed.
func (s *webServer) output() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "output.log"))
	return strings.TrimSpace(string(b))
}

// signal sends sig to the master process.
func (s *webServer) signal(sig os.Signal) error { return s.process.Signal(sig) }

// stop ends the server at once and waits for it; a stopped one may be stopped
// again. Its directory stays.
func (s *webServer) stop() error {
	select {
	case <-s.ended:
		return nil
	default:
	}
	err := s.process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	late := time.NewTimer(webPatience)
	defer late.Stop()
	select {
	case <-s.ended:
	case <-late.C:
		err = errors.Join(errors.New("end web server: SIGTERM was not enough"),
			syscall.Kill(-s.process.Pid, syscall.SIGKILL))
		<-s.ended
	}
	return err
}

func (s *webServer) close() error { return errors.Join(s.stop(), os.RemoveAll(s.dir)) }

// webDir makes a directory that the servers' unprivileged workers may enter.
func webDir(prefix string) (string, error) {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// freeAddress returns a loopback address nobody listens on at the moment.
func freeAddress() (string, error) {
	port, err := freePort()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}

func dialable(network, address string) func() error {
	return func() error {
		var d net.Dialer
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// shipped returns the text of a file below packaging/, with every old of the
// old and new pairs replaced. An old that the file does not hold is an error:
// the file would no longer be what the test believes it loads.
func shipped(name string, pairs ...string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find packaging/%s: the working directory is not inside the module", name)
		}
		dir = filepath.Dir(dir)
	}
	b, err := os.ReadFile(filepath.Join(dir, "packaging", name))
	if err != nil {
		return "", err
	}
	text := string(b)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			return "", fmt.Errorf("adapt packaging/%s: it does not hold %q", name, pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text, nil
}

// webFailed ends a test whose web server did not start: skipped where the
// program is missing, failed in CI and for every other reason.
func webFailed(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, errNoWebServer) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	t.Fatal(err)
}
