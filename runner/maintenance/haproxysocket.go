package maintenance

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// errNoBackend says that HAProxy has no backend of this name.
var errNoBackend = errors.New("no such backend")

// haproxySocket is the path of HAProxy's runtime API.
type haproxySocket string

// maxAnswer bounds what HAProxy may answer to one line, in bytes.
const maxAnswer = 4 << 20

// ask sends one line and returns the answer, without the space around it.
func (s haproxySocket) ask(ctx context.Context, line string) (string, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", string(s))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("reach HAProxy: there is no socket %s: check maintenance.haproxy_socket and that HAProxy runs", string(s))
	case errors.Is(err, syscall.ECONNREFUSED):
		return "", fmt.Errorf("reach HAProxy: nobody answers at %s: check that HAProxy runs", string(s))
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("reach HAProxy: not allowed to use %s: put the agent's user into the socket's group", string(s))
	case err != nil:
		return "", fmt.Errorf("reach HAProxy: %w", err)
	}
	defer c.Close()
	// Closing is what ends a read that HAProxy leaves without answer.
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_, err = io.WriteString(c, line+"\n")
	var b []byte
	if err == nil {
		b, err = readAnswer(c)
	}
	if errors.Is(err, errMaster) {
		return "", fmt.Errorf("ask HAProxy at %s: %w: name the socket of a \"stats socket\" line with \"level admin\" in maintenance.haproxy_socket", string(s), err)
	}
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		// It took the connection and ended before it answered.
		return "", fmt.Errorf("reach HAProxy: nobody answers at %s: check that HAProxy runs", string(s))
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "", fmt.Errorf("ask HAProxy at %s: it took the question and gave no answer in time: check that this is HAProxy's stats socket and not that of another program: %w", string(s), err)
	}
	if err != nil {
		return "", fmt.Errorf("ask HAProxy at %s: %w", string(s), err)
	}
	said := strings.TrimSpace(string(b))
	if strings.HasPrefix(said, "Permission denied") {
		return "", fmt.Errorf("ask HAProxy at %s: permission denied: give this stats socket \"level admin\"", string(s))
	}
	return said, nil
}

// errMaster says that the socket is HAProxy's master's (haproxy -S), which knows
// the processes and not the servers.
var errMaster = errors.New("this is the socket of HAProxy's master process, which knows no servers")

// readAnswer reads what HAProxy says until it closes the connection, which the
// master does not: it waits for more commands after one that it does not know.
func readAnswer(c io.Reader) ([]byte, error) {
	var b []byte
	chunk := make([]byte, 16<<10)
	for len(b) < maxAnswer {
		n, err := c.Read(chunk)
		b = append(b, chunk[:n]...)
		switch {
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, err
		case bytes.HasPrefix(b, []byte("Unknown command")) && bytes.HasSuffix(b, []byte("\n\n")) && bytes.Contains(b, []byte("show proc")):
			return nil, errMaster
		}
	}
	return b[:maxAnswer], nil
}

// serverStates is what "show servers state" tells.
type serverStates struct {
	text string // as HAProxy said it, fit for a state file
	list []serverState
}

type serverState struct {
	name        string
	maintenance bool // forced, by the configuration or at run time
	drain       bool
}

// allInMaintenance reports whether the backend has nothing to send requests to.
func (s serverStates) allInMaintenance() bool {
	return len(s.list) > 0 && !slices.ContainsFunc(s.list, func(s serverState) bool { return !s.maintenance })
}

// The bits of srv_admin_state, as HAProxy's management guide gives them.
const (
	adminForcedMaint = 0x01
	adminForcedDrain = 0x08
)

// servers returns the servers of a backend.
func (s haproxySocket) servers(ctx context.Context, backend string) (serverStates, error) {
	said, err := s.ask(ctx, "show servers state "+backend)
	if err != nil {
		return serverStates{}, err
	}
	if strings.HasPrefix(said, "Can't find backend") {
		return serverStates{}, fmt.Errorf("find HAProxy backend %s: %w: check maintenance.haproxy_backend", backend, errNoBackend)
	}
	states := serverStates{text: said + "\n"}
	name, admin := -1, -1
	for line := range strings.Lines(said) {
		if head, ok := strings.CutPrefix(line, "# "); ok {
			columns := strings.Fields(head)
			name, admin = slices.Index(columns, "srv_name"), slices.Index(columns, "srv_admin_state")
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 { // the first line is the format's version
			continue
		}
		if name < 0 || admin < 0 || len(fields) <= max(name, admin) {
			return serverStates{}, fmt.Errorf("read HAProxy's server states: unexpected line %q", strings.TrimSpace(line))
		}
		bits, err := strconv.ParseUint(fields[admin], 10, 32)
		if err != nil {
			return serverStates{}, fmt.Errorf("read HAProxy's server states: %w", err)
		}
		states.list = append(states.list, serverState{
			name:        fields[name],
			maintenance: bits&adminForcedMaint != 0,
			drain:       bits&adminForcedDrain != 0,
		})
	}
	if name < 0 {
		return serverStates{}, fmt.Errorf("read HAProxy's server states: unexpected answer %.200q", said)
	}
	return states, nil
}

// statServers is the kind of object that "show stat" calls a server.
const statServers = "4"

// sessions returns how many sessions the servers of a backend have now.
func (s haproxySocket) sessions(ctx context.Context, backend string) (int, error) {
	// Of all proxies, and sorted out here: asked by name, HAProxy might answer for
	// a frontend that is called the same.
	said, err := s.ask(ctx, "show stat -1 "+statServers+" -1")
	if err != nil {
		return 0, err
	}
	r := csv.NewReader(strings.NewReader(strings.TrimPrefix(said, "# ")))
	r.FieldsPerRecord, r.LazyQuotes = -1, true
	rows, err := r.ReadAll()
	if err != nil || len(rows) == 0 {
		return 0, fmt.Errorf("read HAProxy's statistics: unexpected answer %.200q", said)
	}
	proxy, current := slices.Index(rows[0], "pxname"), slices.Index(rows[0], "scur")
	if proxy < 0 || current < 0 {
		return 0, fmt.Errorf("read HAProxy's statistics: no columns pxname and scur in %.200q", said)
	}
	total := 0
	for _, row := range rows[1:] {
		if len(row) <= max(proxy, current) || row[proxy] != backend {
			continue
		}
		n, err := strconv.Atoi(row[current])
		if err != nil {
			return 0, fmt.Errorf("read HAProxy's statistics: %w", err)
		}
		total += n
	}
	return total, nil
}
