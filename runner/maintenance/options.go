package maintenance

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"regexp"
	"time"
)

// The values of Options.Handler.
const (
	HandlerNone    = "none"
	HandlerNginx   = "nginx"
	HandlerHAProxy = "haproxy"
	HandlerCommand = "command"
)

// The defaults of Options.
const (
	DefaultFlagFile = "/tmp/maintenance-mode"
	DefaultTimeout  = 10 * time.Second
	DefaultDrain    = 5 * time.Second
)

// Options says how the page is switched. All commands are given to /bin/sh -c,
// in a process group of their own and with an environment of PATH, HOME, USER,
// LOGNAME, LANG and TZ alone.
type Options struct {
	Handler string // none, nginx, haproxy or command; "" is none

	FlagFile      string // nginx: absolute; "" is DefaultFlagFile
	ReloadCommand string // nginx: "" is no reload

	HAProxySocket  string // absolute path of a stats socket of level admin
	HAProxyBackend string
	// HAProxyStateFile is the backend's server-state-file-name, absolute; with it
	// the page survives a reload without a gap. "" is none.
	HAProxyStateFile string

	EnterCommand string // command: both may run more than once, and
	LeaveCommand string // leave without an enter that succeeded

	// ProbeURL, when set, is asked after each switch: 503 means that the page is
	// on. The certificate of a loopback address is not verified.
	ProbeURL string

	// Timeout bounds each switch, and once more the probing after it.
	Timeout time.Duration // 0 is DefaultTimeout
	// Drain is how long Enter waits for requests which were already on their way
	// when the page went on, half the timeout at most. HAProxy's are cut afterwards.
	Drain time.Duration // 0 is DefaultDrain; negative is not at all

	// StateFile is where the agent remembers what it switched on, and for whom:
	// an absolute path in a lasting directory that exists and that nobody else
	// may write to.
	StateFile string

	Logger *slog.Logger // nil is slog.Default()
}

// haproxyName is what HAProxy accepts as the name of a proxy. Anything else
// could smuggle a second command into the socket.
var haproxyName = regexp.MustCompile(`^[A-Za-z0-9_.:-]+$`)

func (o *Options) complete() error {
	setDefault := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	setDefault(&o.Handler, HandlerNone)
	setDefault(&o.FlagFile, DefaultFlagFile)
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Drain == 0 {
		o.Drain = DefaultDrain
	}
	o.Drain = min(o.Drain, o.Timeout/2) // or there would be no time to end what is left
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if !filepath.IsAbs(o.StateFile) {
		return fmt.Errorf("state file %q is not an absolute path", o.StateFile)
	}
	switch o.Handler {
	case HandlerNone:
	case HandlerNginx:
		if !filepath.IsAbs(o.FlagFile) {
			return fmt.Errorf("maintenance.flag_file %q is not an absolute path", o.FlagFile)
		}
	case HandlerHAProxy:
		if !filepath.IsAbs(o.HAProxySocket) {
			return fmt.Errorf("maintenance.haproxy_socket %q is not an absolute path: name HAProxy's stats socket", o.HAProxySocket)
		}
		if !haproxyName.MatchString(o.HAProxyBackend) {
			return fmt.Errorf("maintenance.haproxy_backend %q is not the name of a backend", o.HAProxyBackend)
		}
		if o.HAProxyStateFile != "" && !filepath.IsAbs(o.HAProxyStateFile) {
			return fmt.Errorf("maintenance.haproxy_state_file %q is not an absolute path", o.HAProxyStateFile)
		}
	case HandlerCommand:
		if o.EnterCommand == "" || o.LeaveCommand == "" {
			return errors.New("maintenance.enter_command and maintenance.leave_command must both be set for the handler \"command\"")
		}
	default:
		return fmt.Errorf("maintenance handler %q is none of none, nginx, haproxy, command", o.Handler)
	}
	if o.ProbeURL != "" {
		u, err := url.Parse(o.ProbeURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("maintenance.probe_url %q is not an http or https address", o.ProbeURL)
		}
	}
	return nil
}

func (o *Options) target() target {
	t := target{Handler: o.Handler}
	switch o.Handler {
	case HandlerNginx:
		t.FlagFile, t.ReloadCommand = o.FlagFile, o.ReloadCommand
	case HandlerHAProxy:
		t.Socket, t.Backend, t.ServerStateFile = o.HAProxySocket, o.HAProxyBackend, o.HAProxyStateFile
	case HandlerCommand:
		t.LeaveCommand = o.LeaveCommand
	}
	return t
}
