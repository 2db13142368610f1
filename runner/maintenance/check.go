package maintenance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Finding is one thing that Check looked at, in a sentence for the operator.
type Finding struct {
	OK   bool
	Text string

	unseen bool // nginx was found not to look for the flag file
}

func fine(format string, args ...any) Finding {
	return Finding{OK: true, Text: fmt.Sprintf(format, args...)}
}

func wrong(format string, args ...any) Finding {
	return Finding{Text: fmt.Sprintf(format, args...)}
}

// Check looks at all that Enter and Leave will need, and switches nothing.
func (s *Switch) Check(ctx context.Context) []Finding {
	m := s.method(s.opts.target())
	if m == nil {
		return []Finding{fine("no maintenance page (maintenance.mode_handler is none)")}
	}
	var all []Finding
	_ = s.bounded(ctx, func(ctx context.Context) error {
		all = m.check(ctx)
		if s.probe != nil {
			all = append(all, s.probe.check(ctx))
		}
		return nil
	})
	if r, err := s.record.load(); err != nil {
		all = append(all, wrong("%v", err))
	} else if r != nil {
		all = append(all, fine("the page is on for %s since %s", r.Owner, r.EnteredAt.Format("2006-01-02 15:04:05 MST")))
	}
	return all
}

func (n *nginx) check(ctx context.Context) []Finding {
	var all []Finding
	dir := filepath.Dir(n.flagFile)
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		all = append(all, wrong("the flag file cannot be created: %s: %v", dir, err))
	} else if state, err := lookAtFlag(n.flagFile, nil); err != nil {
		all = append(all, wrong("%v", err))
	} else if state == flagForeign {
		all = append(all, fine("the flag file %s is there; the agent ends only what its record tells of", n.flagFile))
	} else {
		all = append(all, fine("the flag file %s can be created", n.flagFile))
	}
	all = append(all, n.checkProgram(ctx))
	if err := n.elsewhere(); err != nil {
		all = append(all, wrong("%v", err))
	}
	return all
}

// unseen says why nginx, which was reloaded without a complaint, does not show
// the page all the same; nil when it does, or nothing tells.
func (n *nginx) unseen(ctx context.Context) error {
	if err := n.elsewhere(); err != nil {
		return err
	}
	if f := n.checkProgram(ctx); !f.OK && f.unseen {
		return errors.New(f.Text)
	}
	return nil
}

// elsewhere says that nginx looks for the flag file in a directory of another
// name space.
func (n *nginx) elsewhere() error {
	dir := filepath.Dir(n.flagFile)
	for _, w := range nginxWorkers() {
		// One that ended between two looks shows no directory at all.
		if !sameDir(dir, fmt.Sprintf("/proc/%d/root%s", w.pid, dir)) && anyAlive([]process{w}) {
			return fmt.Errorf("nginx sees another %s than the agent (PrivateTmp=yes in one of the units): choose another directory for maintenance.flag_file", dir)
		}
	}
	return nil
}

// checkProgram looks for the flag file in nginx's own idea of its configuration.
func (n *nginx) checkProgram(ctx context.Context) Finding {
	if n.reloadCommand == "" {
		return fine("nginx is not reloaded (maintenance.reload_command is empty)")
	}
	program, _, _ := strings.Cut(n.reloadCommand, " ")
	if _, err := exec.LookPath(program); err != nil {
		if _, err := exec.LookPath("/usr/sbin/" + program); err != nil {
			return wrong("maintenance.reload_command needs %s, which is not installed: install it, or choose another maintenance.mode_handler", program)
		}
	}
	same, ok := strings.CutSuffix(n.reloadCommand, " -s reload")
	if !ok {
		return fine("maintenance.reload_command can be run")
	}
	config, err := shell(ctx, same+" -T", maxConfig)
	switch {
	case err != nil:
		return wrong("nginx does not accept its configuration: %v", err)
	case !strings.Contains(withoutComments(config), n.flagFile):
		f := wrong("nginx's configuration does not look for %s: include wrktalk-maintenance.conf in the server block", n.flagFile)
		f.unseen = true
		return f
	}
	return fine("nginx looks for %s", n.flagFile)
}

// maxConfig bounds how much of nginx's configuration is looked through.
const maxConfig = 8 << 20

func withoutComments(config string) string {
	var b strings.Builder
	for line := range strings.Lines(config) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func sameDir(a, b string) bool {
	fa, err := os.Stat(a)
	if err != nil {
		return true
	}
	fb, err := os.Stat(b)
	if errors.Is(err, os.ErrPermission) {
		return true // only root may look
	}
	return err == nil && os.SameFile(fa, fb)
}

func (h *haproxy) check(ctx context.Context) []Finding {
	level, err := h.socket.ask(ctx, "show cli level")
	if err != nil {
		return []Finding{wrong("%v", err)}
	}
	var all []Finding
	if level == "admin" {
		all = append(all, fine("HAProxy's socket %s has the level admin", string(h.socket)))
	} else {
		all = append(all, wrong("HAProxy's socket %s has the level %s: give it \"level admin\"", string(h.socket), level))
	}
	states, err := h.socket.servers(ctx, h.backend)
	switch {
	case err != nil:
		all = append(all, wrong("%v", err))
	case len(states.list) == 0:
		all = append(all, wrong("HAProxy's backend %s has no servers", h.backend))
	default:
		all = append(all, fine("HAProxy's backend %s has servers: %d", h.backend, len(states.list)))
	}
	if h.stateFile != "" {
		dir := filepath.Dir(h.stateFile)
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			all = append(all, wrong("HAProxy's state file cannot be written: %s: %v", dir, err))
		} else {
			all = append(all, fine("HAProxy's state file %s can be written", h.stateFile))
		}
	}
	return all
}

func (c *command) check(context.Context) []Finding {
	if c.probe == nil {
		return []Finding{fine("the page is switched by commands; without maintenance.probe_url nothing can tell whether they work")}
	}
	return []Finding{fine("the page is switched by commands")}
}

func (p *probe) check(ctx context.Context) Finding {
	a, err := p.ask(ctx)
	switch {
	case err != nil:
		return wrong("%v: check maintenance.probe_url", err)
	case a.status >= 300 && a.status < 400:
		return wrong("%s answers %d, a redirect, which is not followed: let maintenance.probe_url name the address it leads to", p.shown, a.status)
	}
	return fine("%s answers %d", p.shown, a.status)
}
