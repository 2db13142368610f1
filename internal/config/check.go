package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

var (
	isProjectName = matches(`^[a-z0-9][a-z0-9_-]*$`, math.MaxInt, // as Compose has it
		"want lower-case letters, digits, - and _, beginning with a letter or digit")
	isNamespace = matches(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, 63,
		"want at most 63 lower-case letters, digits and -, with a letter or digit at both ends")
	isReleaseName = matches(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`, 53,
		"want at most 53 lower-case letters, digits, - and ., with a letter or digit at both ends")
	// In HAProxy's runtime API a space, a slash or a semicolon would begin
	// something else.
	isBackendName = matches(`^[A-Za-z0-9_.:-]+$`, math.MaxInt, "want letters, digits and any of _ - . :, nothing else")
	isRequireAuth = matches(`^(auto|any|!?(password|md5|gss|sspi|scram-sha-256|oauth|none)( *, *!?(password|md5|gss|sspi|scram-sha-256|oauth|none))*)$`, math.MaxInt,
		"want auto, any, or some of password, md5, gss, sspi, scram-sha-256, oauth and none, separated by commas")
	isHelo = matches(`^[A-Za-z0-9_.:\[\]-]*$`, math.MaxInt, "want a host name or an address in brackets")

	hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$`)
)

// matches accepts a text of at most longest bytes that pattern fits; want says
// what that is.
func matches(pattern string, longest int, want string) func(string) error {
	re := regexp.MustCompile(pattern)
	return func(s string) error {
		if len(s) > longest || !re.MatchString(s) {
			return errors.New(want)
		}
		return nil
	}
}

// isName refuses the address that somebody gave for a mere name: it may hold a
// password, and names are shown.
func isName(s string) error {
	if isAddress(s) {
		return errors.New("want a name, not an address: that belongs into db.url")
	}
	if s == "" {
		return errors.New("want something, not nothing")
	}
	return nil
}

func isProbeURL(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return errors.New("want an http or https address")
	}
	if u.User != nil {
		return errors.New("want an address without user name and password: this setting is shown and logged")
	}
	return nil
}

// listen accepts host:port, and off or nothing for no listener.
func listen(field func(*Config) *string) binding {
	return bind(kindText, field, func(s string) (string, error) {
		if s == "" || strings.EqualFold(s, "off") {
			return "", nil
		}
		host, port, err := net.SplitHostPort(s)
		_, portErr := strconv.ParseUint(port, 10, 16)
		if err != nil || portErr != nil || (host != "" && !isHost(host)) {
			return "", errors.New(`want host:port such as 127.0.0.1:9471, or "off"`)
		}
		return s, nil
	}, func(s string) string {
		if s == "" {
			return "off"
		}
		return s
	})
}

// allowedHosts accepts names, without port, and * for any.
func allowedHosts(field func(*Config) *[]string) binding {
	return bind(kindList, field, func(s string) ([]string, error) {
		var list []string
		for name := range strings.SplitSeq(s, ",") {
			name = strings.TrimSpace(name)
			switch {
			case name == "" && s == "":
			case name == "*" || isHost(name):
				list = append(list, name)
			default:
				return nil, errors.New("want host names without port, separated by commas, or * for any")
			}
		}
		return list, nil
	}, func(list []string) string { return strings.Join(list, ",") })
}

// hosts accepts what libpq accepts as a list of hosts.
func hosts(field func(*Config) *[]string) binding {
	return bind(kindList, field, func(s string) ([]string, error) {
		list := strings.Split(s, ",")
		for i, h := range list {
			h = strings.TrimSpace(h)
			if inner, ok := strings.CutPrefix(h, "["); ok {
				h = strings.TrimSuffix(inner, "]")
			}
			if strings.HasPrefix(h, "/") {
				if err := oneLine(h); err != nil {
					return nil, err
				}
			} else if !isHost(h) {
				return nil, errors.New("want host names, addresses or socket directories, separated by commas; the port has its own key, db.port")
			}
			list[i] = h
		}
		return list, nil
	}, func(list []string) string { return strings.Join(list, ",") })
}

func isHost(s string) bool {
	if hostName.MatchString(s) {
		return true
	}
	_, err := netip.ParseAddr(s)
	return err == nil
}

func ports(field func(*Config) *[]uint16) binding {
	return bind(kindList, field, func(s string) ([]uint16, error) {
		var list []uint16
		for p := range strings.SplitSeq(s, ",") {
			n, err := strconv.ParseUint(strings.TrimSpace(p), 10, 16)
			if err != nil || n == 0 {
				return nil, errors.New("want ports from 1 to 65535, separated by commas")
			}
			list = append(list, uint16(n))
		}
		return list, nil
	}, joinPorts)
}

func joinPorts(list []uint16) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = strconv.Itoa(int(p))
	}
	return strings.Join(texts, ",")
}

// longestDeployment returns how long a deployment may take by its own limits: to
// bring a release up, to bring the one before back, and for the page twice.
func (c *Config) longestDeployment() time.Duration {
	up, back := c.Compose.Timeout, c.Compose.RestoreTimeout
	if c.Agent.DeploymentType == task.DeploymentKubernetes {
		up, back = c.Helm.Timeout, c.Helm.Timeout
	}
	return up + back + 4*c.Maintenance.Timeout
}

// validate fills in what depends on several keys and returns what contradicts
// itself. It runs once every value is known to be valid by itself.
func (c *Config) validate() []error {
	var problems []error
	report := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf(format, args...))
	}

	// The heartbeat interval of the reference may be longer than any lease we
	// would choose; a configuration that was right there stays right.
	least := 2 * c.Agent.HeartbeatInterval
	if least <= 0 {
		report("%s is too long", c.describe("agent.heartbeat_interval"))
	} else if c.Agent.Lease < least {
		if c.source("agent.lease") == sourceDefault {
			c.Agent.Lease = least
		} else {
			report("%s is less than twice %s: raise it to %s at least, or a late heartbeat costs the agent its task",
				c.describe("agent.lease"), c.describe("agent.heartbeat_interval"), formatDuration(least))
		}
	}

	if c.Agent.ShutdownGrace < 0 {
		c.Agent.ShutdownGrace = c.longestDeployment()
	}

	if n, m := len(c.DB.Hosts), len(c.DB.Ports); m != 1 && m != n {
		report("%s and %s do not match: %d hosts need one port, or %d", c.describe("db.host"), c.describe("db.port"), n, n)
	}
	if c.DB.TargetSessionAttrs == "auto" {
		c.DB.TargetSessionAttrs = "any"
		if len(c.DB.Hosts) > 1 {
			c.DB.TargetSessionAttrs = "read-write"
		}
	}
	c.DB.resolveAuth()
	if (c.DB.SSLCert == "") != (c.DB.SSLKey == "") {
		report("db.ssl_cert and db.ssl_key belong together: set both or neither")
	}
	if c.DB.SSLRootCert == "system" && c.DB.SSLMode != "verify-full" {
		report("%s needs db.ssl_mode verify-full: any public authority's certificate would pass otherwise", c.describe("db.ssl_root_cert"))
	}

	if n := c.Notify; (n.OAuthTokenURL == "") != (n.OAuthClientID == "") || (n.OAuthTokenURL == "") != n.OAuthClientSecret.Empty() {
		report("notify.oauth_token_url, notify.oauth_client_id and notify.oauth_client_secret belong together: set all three or none")
	}
	if c.Helm.HistoryMax == 1 {
		report("%s leaves no revision to roll back to: want 0 (all) or at least 2", c.describe("helm.history_max"))
	}
	if m := c.Maintenance; m.ModeHandler == "command" && (m.EnterCommand == "" || m.LeaveCommand == "") {
		report("%s needs both maintenance.enter_command and maintenance.leave_command", c.describe("maintenance.mode_handler"))
	}
	return problems
}

// source returns where the value of the key called name came from.
func (c *Config) source(name string) string {
	if slices.Contains(c.fromURL, name) {
		return "db.url"
	}
	return c.entries[mustLookup(name)].source
}

// describe returns the key with its value and source, for a message.
func (c *Config) describe(name string) string {
	return fmt.Sprintf("%s (%s, %s)", name, keys[mustLookup(name)].get(c), c.source(name))
}
