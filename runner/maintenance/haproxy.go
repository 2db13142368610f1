package maintenance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// haproxy switches by putting every server of a backend into maintenance:
// HAProxy then answers 503 itself. A server that is in maintenance already is an
// operator's and is never touched.
//
// HAProxy forgets all of it with each reload. The page is switched on again within
// enforceInterval; where the backend loads a state file, the new worker starts
// with the page on.
type haproxy struct {
	socket    haproxySocket
	backend   string
	stateFile string
	drain     time.Duration
	log       *slog.Logger
}

func (h *haproxy) prepare(ctx context.Context, r *record) (bool, error) {
	if err := h.checkStateFile(); err != nil {
		return false, err
	}
	states, err := h.socket.servers(ctx, h.backend)
	if err != nil {
		return false, err
	}
	if len(states.list) == 0 {
		return false, fmt.Errorf("put HAProxy backend %s into maintenance: it has no servers", h.backend)
	}
	h.addServers(r, states)
	return len(r.Servers) == 0, nil
}

// addServers adds to r the servers that are not in maintenance, and reports whether
// there were any it did not hold yet.
func (h *haproxy) addServers(r *record, states serverStates) (changed bool) {
	for _, s := range states.list {
		if s.maintenance || slices.ContainsFunc(r.Servers, func(n server) bool { return n.Name == s.name }) {
			continue
		}
		restore := "ready"
		if s.drain {
			restore = "drain"
		}
		r.Servers, changed = append(r.Servers, server{Name: s.name, Restore: restore}), true
	}
	return changed
}

func (h *haproxy) enable(ctx context.Context, r *record, save func() error) error {
	states, err := h.socket.servers(ctx, h.backend)
	if err != nil {
		return err
	}
	if h.addServers(r, states) {
		if err := save(); err != nil {
			return err
		}
	}
	var lines []string
	for _, s := range states.list {
		if !s.maintenance {
			lines = append(lines, fmt.Sprintf("set server %s/%s state maint", h.backend, s.name))
		}
	}
	if err := h.set(ctx, lines); err != nil {
		return err
	}
	if states, err = h.socket.servers(ctx, h.backend); err != nil {
		return err
	}
	if !states.allInMaintenance() {
		return fmt.Errorf("put HAProxy backend %s into maintenance: a server is still open to clients: look at \"show servers state %[1]s\"", h.backend)
	}
	if err := h.writeStateFile(states); err != nil {
		return err
	}
	return h.waitForSessions(ctx, r)
}

func (h *haproxy) disable(ctx context.Context, r *record) (bool, error) {
	if err := h.removeStateFile(); err != nil {
		return false, err
	}
	if err := h.release(ctx, r); err != nil || h.stateFile == "" {
		return false, err
	}
	// A new worker may have read the state file just before it was removed, and
	// not answer on the socket yet: look again when it does. Nothing would end its
	// page (TestHAProxyReloadWhileLeaving).
	select {
	case <-time.After(time.Second):
		return false, h.release(ctx, r)
	case <-ctx.Done():
		return false, fmt.Errorf("look again at HAProxy backend %s: %w", h.backend, ctx.Err())
	}
}

// release makes the servers of r what they were before.
func (h *haproxy) release(ctx context.Context, r *record) error {
	for range 2 {
		states, err := h.socket.servers(ctx, h.backend)
		if errors.Is(err, errNoBackend) {
			return nil // the configuration has changed; nothing of ours is left
		}
		if err != nil {
			return err
		}
		var lines []string
		for _, s := range states.list {
			i := slices.IndexFunc(r.Servers, func(n server) bool { return n.Name == s.name })
			if i >= 0 && s.maintenance {
				lines = append(lines, fmt.Sprintf("set server %s/%s state %s", h.backend, s.name, r.Servers[i].Restore))
			}
		}
		if len(lines) == 0 {
			return nil
		}
		if err := h.set(ctx, lines); err != nil {
			return err
		}
	}
	return fmt.Errorf("take HAProxy backend %s out of maintenance: a server is still in it: look at \"show servers state %[1]s\"", h.backend)
}

func (h *haproxy) state(ctx context.Context, r *record) (on, ours bool, err error) {
	states, err := h.socket.servers(ctx, h.backend)
	on = err == nil && states.allInMaintenance()
	return on, on && r != nil && len(r.Servers) > 0, err
}

func (h *haproxy) set(ctx context.Context, lines []string) error {
	for _, line := range lines {
		if err := fault.Point("maintenance.haproxy." + line); err != nil {
			return err
		}
		said, err := h.socket.ask(ctx, line)
		if err == nil && said != "" {
			err = errors.New(said)
		}
		if err != nil {
			return fmt.Errorf("tell HAProxy %q: %w", line, err)
		}
	}
	return nil
}

// waitForSessions returns when the servers have no requests left from before
// the page. What is still there when the time is over, websockets most likely,
// is cut: it would break with the application anyway, but later.
func (h *haproxy) waitForSessions(ctx context.Context, r *record) error {
	if h.drain < 0 {
		return nil
	}
	drained := time.NewTimer(h.drain)
	defer drained.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	cut := false
	for {
		busy, err := h.socket.sessions(ctx, h.backend)
		if err != nil || busy == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for requests that are still at HAProxy backend %s: %w", h.backend, ctx.Err())
		case <-drained.C:
			if cut {
				return nil
			}
			h.log.Info("cutting connections that were open before the maintenance", "sessions", busy)
			var lines []string
			for _, s := range r.Servers {
				lines = append(lines, fmt.Sprintf("shutdown sessions server %s/%s", h.backend, s.Name))
			}
			if err := h.set(ctx, lines); err != nil {
				return err
			}
			cut = true
			drained.Reset(time.Second)
		}
	}
}

// checkStateFile returns an error if another file lies where the state file is to
// be: it would be replaced now, and removed with the end of the page.
func (h *haproxy) checkStateFile() error {
	if h.stateFile == "" {
		return nil
	}
	f, err := os.OpenFile(h.stateFile, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil //nolint:nilerr // none is there, or writing will say what is wrong
	}
	defer f.Close()
	head := make([]byte, 64)
	n, err := io.ReadFull(f, head)
	version, columns, _ := bytes.Cut(head[:n], []byte("\n"))
	if n == 0 && errors.Is(err, io.EOF) || string(version) == "1" && bytes.HasPrefix(columns, []byte("# be_id")) {
		return nil
	}
	return fmt.Errorf("%s is there and holds no server states of HAProxy, and is left as it is: set maintenance.haproxy_state_file to the backend's server-state-file-name", h.stateFile)
}

// writeStateFile writes the state that a new worker starts with.
func (h *haproxy) writeStateFile(states serverStates) error {
	if h.stateFile == "" {
		return nil
	}
	if err := h.checkStateFile(); err != nil {
		return err
	}
	err := inDirectoryOf(h.stateFile, func(dir *os.Root, name string) error {
		return durable.WriteFile(dir, name, []byte(states.text), 0o644)
	})
	if err != nil {
		return fmt.Errorf("write HAProxy's state file: %w: check maintenance.haproxy_state_file", err)
	}
	return nil
}

// removeStateFile lets new workers start with the states of the configuration.
func (h *haproxy) removeStateFile() error {
	if h.stateFile == "" || h.checkStateFile() != nil {
		return nil
	}
	if err := inDirectoryOf(h.stateFile, removeExisting); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove HAProxy's state file: %w", err)
	}
	return nil
}
