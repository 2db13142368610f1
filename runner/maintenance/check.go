package maintenance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Finding is one thing that Check looked at, in a sentence for the operator.
type Finding struct {
	OK   bool
	Text string
}

func fine(format string, args ...any) Finding {
	return Finding{OK: true, Text: fmt.Sprintf(format, args...)}
}

func wrong(format string, args ...any) Finding {
	return Finding{Text: fmt.Sprintf(format, args...)}
}

// Check looks at all that Enter and Leave will need, and switches nothing.
func (s *Switch) Check(ctx context.Context) []Finding {
	h := s.handler(s.opts.target())
	if h == nil {
		return []Finding{fine("no maintenance page (maintenance.mode_handler is none)")}
	}
	var all []Finding
	_ = s.bounded(ctx, func(ctx context.Context) error {
		all = h.check(ctx)
		if s.probe != nil {
			all = append(all, s.probe.check(ctx))
		}
		return nil
	})
	if r, err := s.record.load(); err != nil {
		all = append(all, wrong("%v", err))
	} else if err := s.record.checkDirectory(); err != nil {
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
		all = append(all, foreignFlag(n.flagFile))
	} else {
		all = append(all, fine("the flag file %s can be created", n.flagFile))
	}
	return append(all, n.checkReload(ctx))
}

// foreignFlag is what Check says about a flag file that is there: an operator's, as
// long as nothing speaks against that.
func foreignFlag(path string) Finding {
	info, err := os.Lstat(path)
	if err == nil && foreignUser(info) == "" { // nor is what a link leads to, if it is one
		info, err = os.Stat(path)
	}
	if err != nil {
		return wrong("the flag file cannot be looked at: %v", err)
	}
	if user := foreignUser(info); user != "" {
		return wrong("the flag file %s was made by %s: while it is there, clients get the page, and the agent does not end it; remove it, and set maintenance.flag_file to a file in a directory that others may not write to", path, user)
	}
	if info.Size() > 0 {
		return wrong("the flag file %s is there, with %d bytes that are not the agent's: while it is there the page counts as on, and the agent neither changes nor removes it; if it is not for maintenance, set maintenance.flag_file to another name", path, info.Size())
	}
	return fine("the flag file %s is there; the agent ends only what its record tells of", path)
}

// foreignUser names the owner of a file, "" when it is the agent's user or root.
func foreignUser(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 || int(st.Uid) == os.Geteuid() {
		return ""
	}
	return fmt.Sprintf("user %d", st.Uid)
}

// checkReload looks whether the reload command can be run, and for the flag file
// in nginx's own idea of its configuration.
func (n *nginx) checkReload(ctx context.Context) Finding {
	if n.reloadCommand == "" {
		return fine("nginx is not reloaded (maintenance.reload_command is empty)")
	}
	program, _, _ := strings.Cut(n.reloadCommand, " ")
	if _, err := exec.LookPath(program); err != nil {
		if _, err := exec.LookPath("/usr/sbin/" + program); err != nil {
			return wrong("maintenance.reload_command needs %s, which is not installed: install it, or choose another maintenance.mode_handler", program)
		}
	}
	config, err := n.configuration(ctx)
	if err == nil {
		err = n.looksForFlag(config)
	}
	switch {
	case err != nil:
		return wrong("%v", err)
	case config == "":
		return fine("maintenance.reload_command can be run")
	}
	return fine("nginx looks for %s", n.flagFile)
}

func (h *haproxy) check(ctx context.Context) []Finding {
	// First what the master process does not know: the other question it would
	// answer, and then wait for more.
	states, serversErr := h.socket.servers(ctx, h.backend)
	if errors.Is(serversErr, errMaster) {
		return []Finding{wrong("%v", serversErr)}
	}
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
	switch {
	case serversErr != nil:
		all = append(all, wrong("%v", serversErr))
	case len(states.list) == 0:
		all = append(all, wrong("HAProxy's backend %s has no servers", h.backend))
	default:
		all = append(all, fine("HAProxy's backend %s has servers: %d", h.backend, len(states.list)))
	}
	if h.stateFile != "" {
		dir := filepath.Dir(h.stateFile)
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			all = append(all, wrong("HAProxy's state file cannot be written: %s: %v", dir, err))
		} else if err := h.checkStateFile(); err != nil {
			all = append(all, wrong("%v", err))
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
