package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// HAProxyOptions says what HAProxy serves.
type HAProxyOptions struct {
	Upstreams []string // host:port of each of the application's servers, app1, app2, ...
	Level     string   // of the socket; by default admin
	// Disabled names servers that the configuration itself puts into maintenance.
	Disabled []string
	// NoStateFile leaves out the lines which let the page survive a reload
	// without a gap.
	NoStateFile bool
}

// HAProxy is a real HAProxy, master and worker, on the loopback address. Its
// configuration is the shipped file.
type HAProxy struct {
	URL       string // of the site, without a path
	Socket    string // of the runtime API
	Master    string // socket of the master process
	Backend   string
	StateFile string
	*webServer
}

// startHAProxy starts HAProxy. The caller closes it.
func startHAProxy(opts HAProxyOptions) (_ *HAProxy, err error) {
	dir, err := webDir("wrktalk-haproxy-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	h := &HAProxy{
		URL:       "http://" + address,
		Socket:    filepath.Join(dir, "admin.sock"),
		Master:    filepath.Join(dir, "master.sock"),
		Backend:   "wrktalk",
		StateFile: filepath.Join(dir, "wrktalk-server-state"),
	}
	config, err := h.config(opts, dir, address)
	if err != nil {
		return nil, err
	}
	page, err := shipped("nginx/maintenance.html")
	if err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"haproxy.cfg": config, "maintenance.html": page} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	if h.webServer, err = startWebServer(dir, "haproxy", "-W", "-S", h.Master, "-f", filepath.Join(dir, "haproxy.cfg")); err != nil {
		return nil, err
	}
	if err := h.await("start HAProxy", func() error {
		if _, err := h.worker(); err != nil {
			return err
		}
		return h.listening()
	}); err != nil {
		return nil, errors.Join(err, h.stop())
	}
	return h, nil
}

func (h *HAProxy) config(opts HAProxyOptions, dir, address string) (string, error) {
	level := opts.Level
	if level == "" {
		level = "admin"
	}
	var servers strings.Builder
	for i, u := range opts.Upstreams {
		fmt.Fprintf(&servers, "    server app%d %s", i+1, u)
		for _, d := range opts.Disabled {
			if d == fmt.Sprintf("app%d", i+1) {
				servers.WriteString(" disabled")
			}
		}
		servers.WriteString("\n")
	}
	text, err := shipped("haproxy/wrktalk-maintenance.cfg",
		"    server app1 127.0.0.1:8080 check\n", servers.String(),
		"stats socket /run/haproxy/admin.sock mode 660 level admin", "stats socket "+h.Socket+" mode 660 level "+level,
		"bind :80\n", "bind "+address+"\n",
		"file /usr/share/wrktalk-agent/nginx/maintenance.html ", "file "+dir+"/maintenance.html ",
		"server-state-file-name /run/haproxy/wrktalk-server-state", "server-state-file-name "+h.StateFile)
	if err != nil {
		return "", err
	}
	if opts.NoStateFile {
		text = strings.ReplaceAll(text, "load-server-state-from-file local", "load-server-state-from-file none")
		text = strings.ReplaceAll(text, "server-state-file-name", "# server-state-file-name")
	}
	if os.Geteuid() == 0 {
		text = strings.Replace(text, "global\n", "global\n    user haproxy\n    group haproxy\n", 1) // as Debian has it
	}
	return text, nil
}

// NewHAProxy starts HAProxy for one test. Without HAProxy the test is skipped,
// in CI it fails.
func NewHAProxy(t testing.TB, opts HAProxyOptions) *HAProxy {
	t.Helper()
	h, err := startHAProxy(opts)
	if err != nil {
		webFailed(t, err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// Command sends one line to the runtime API and returns the answer.
func (h *HAProxy) Command(line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", h.Socket)
	if err != nil {
		return "", err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return strings.TrimSpace(string(b)), err
}

// worker returns the process id of the worker that answers.
func (h *HAProxy) worker() (string, error) {
	info, err := h.Command("show info")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(info) {
		if pid, ok := strings.CutPrefix(line, "Pid: "); ok {
			return strings.TrimSpace(pid), nil
		}
	}
	return "", fmt.Errorf("find the worker in %q", info)
}

// listening returns nil when the master takes the signal to reload. It starts
// itself anew for a reload, and loses signals until then.
func (h *HAProxy) listening() error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.process.Pid))
	if err != nil {
		return err
	}
	masks := map[string]uint64{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name == "SigCgt" || name == "SigBlk" {
			if masks[name], err = strconv.ParseUint(strings.TrimSpace(value), 16, 64); err != nil {
				return fmt.Errorf("read the signals of HAProxy's master: %w", err)
			}
		}
	}
	const reload = 1 << (syscall.SIGUSR2 - 1)
	if masks["SigCgt"]&reload == 0 || masks["SigBlk"]&reload != 0 {
		return errors.New("a master that hears no signals")
	}
	return nil
}

// Reload does what systemctl reload does, and waits until a new worker answers
// and the master listens again.
func (h *HAProxy) Reload() error {
	before, err := h.worker()
	if err != nil {
		return err
	}
	var asked time.Time
	return h.await("reload HAProxy", func() error {
		// Should it have lost the signal all the same. One that is only slow must
		// not be asked again: it would reload once more later.
		if time.Since(asked) > 10*time.Second {
			if err := h.signal(syscall.SIGUSR2); err != nil {
				return err
			}
			asked = time.Now()
		}
		after, err := h.worker()
		if err == nil && after == before {
			err = fmt.Errorf("worker %s", before)
		}
		if err == nil {
			err = h.listening()
		}
		return err
	})
}

// Stop ends HAProxy at once; its files stay until Close.
func (h *HAProxy) Stop() error { return h.stop() }

// Close ends HAProxy and removes its files.
func (h *HAProxy) Close() error { return h.close() }
