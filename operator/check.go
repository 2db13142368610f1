package operator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
	"github.com/wrktalk/wrktalk-agent/internal/containerid"
	"github.com/wrktalk/wrktalk-agent/internal/history"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
	"github.com/wrktalk/wrktalk-agent/supervisor"
)

// Results of a check.
const (
	CheckOK      = "ok"
	CheckWarning = "warning"
	CheckFailed  = "failed"
)

// Finding is the result of one check.
type Finding struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Text   string `json:"text"`
}

// Checks collects what the checks of an installation found.
type Checks struct{ Findings []Finding }

// Add adds a finding; its text becomes one line.
func (c *Checks) Add(check, result, format string, args ...any) {
	text := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	c.Findings = append(c.Findings, Finding{check, result, text})
}

// Staging makes sure that the directory is one that the agent may use, that it can
// be written and that it has room. An agent that runs on it already is no fault.
func (c *Checks) Staging(dir string) {
	err := staging.Check(dir)
	var owner *staging.OwnerError
	switch {
	case errors.As(err, &owner) && os.Geteuid() == 0: // root looks at the agent of another user
		c.Add("staging", CheckWarning, "staging.dir %s belongs to user %d, as which the agent must run: run this as that user to find out what it may do", dir, owner.UID)
	case err != nil:
		c.Add("staging", CheckFailed, "%v", err)
		return
	}
	existing, err := writable(dir)
	if err != nil {
		c.Add("staging", CheckFailed, "%v; change its owner or set staging.dir", err)
		return
	}
	if warning := ExposedStaging(dir); warning != "" {
		c.Add("staging", CheckWarning, "%s", warning)
	}
	var held *staging.HeldError
	if errors.As(staging.AgentHolds(dir), &held) {
		running := "an agent is running on it"
		if held.PID != 0 {
			running = fmt.Sprintf("an agent is running on it, process %d", held.PID)
		}
		c.Add("staging", CheckOK, "%s: %s", dir, running)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(existing, &st); err != nil {
		c.Add("staging", CheckFailed, "%s: %v", existing, err)
		return
	}
	free := int64(st.Bavail) * st.Bsize
	const little = 1 << 30
	if free < little {
		c.Add("staging", CheckWarning, "%s has %d MiB free, which a large release may fill", dir, free>>20)
		return
	}
	c.Add("staging", CheckOK, "%s, %d GiB free", dir, free>>30)
}

// History makes sure that the directory of past runs is one that the agent may use. What
// is wrong with it stops no deployment. With nothing to keep, it is not looked at.
func (c *Checks) History(dir string, keep int) {
	if keep == 0 {
		return
	}
	err := history.Use.Check(dir)
	switch {
	case errors.Is(err, fs.ErrPermission): // whoever looks is not the agent
	case err != nil:
		c.Add("history", CheckWarning, "%v; no run is kept", err)
	default:
		c.Add("history", CheckOK, "%s keeps %d runs", dir, keep)
	}
}

// ExposedStaging warns of a staging directory that others could replace; it is ""
// for any other one. A pod's volumes are writable for all, and nobody else is there.
func ExposedStaging(dir string) string {
	who := agentdir.Exposed(dir)
	if who == "" || os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return ""
	}
	return fmt.Sprintf("staging.dir %s can be replaced by %s: what is staged there is deployed, so set it to a directory below ones that only root or the agent's user can change", dir, who)
}

// Listen makes sure that the supervisor's pages can be served on address, "" for
// none. An agent of this configuration that serves them already is no fault;
// required is whether run would refuse to start without.
func (c *Checks) Listen(ctx context.Context, of *Client, required bool) {
	if of.Listen == "" {
		return
	}
	ln, err := supervisor.Listen(of.Listen)
	switch {
	case err == nil:
		ln.Close()
		c.Add("health", CheckOK, "can be served on %s", of.Listen)
	case of.componentHealth(ctx) != nil:
		c.Add("health", CheckOK, "is served on %s by the agent that is running", of.Listen)
	case required:
		c.Add("health", CheckFailed, "%v", err)
	default:
		c.Add("health", CheckWarning, "%v", err)
	}
}

// writable makes sure that this user can write to dir, or can create it, and
// returns it or its nearest parent that is there.
func writable(dir string) (existing string, err error) {
	existing = dir
	info, err := os.Stat(existing)
	for ; err != nil && existing != "/"; info, err = os.Stat(existing) {
		existing = filepath.Dir(existing)
	}
	if err == nil && !info.IsDir() {
		return existing, fmt.Errorf("%s is no directory", existing)
	}
	if err := unix.Access(existing, unix.W_OK|unix.X_OK); err != nil {
		return existing, fmt.Errorf("%s cannot be written by user %d: %w", existing, os.Geteuid(), err)
	}
	return existing, nil
}

// WorkingDir makes sure that the directory is the agent's and that it can be written,
// and warns about one that a reboot empties: the data of containers lie there. In a
// container none is, for all that is known here.
func (c *Checks) WorkingDir(dir string) {
	if err := protocol.CheckWorkingDir(dir); err != nil {
		c.Add("working directory", CheckFailed, "%v", err)
		return
	}
	if _, err := writable(dir); err != nil {
		c.Add("working directory", CheckFailed, "%v; change its owner or set compose.working_dir", err)
		return
	}
	inContainer := containerid.Inside()
	for _, volatile := range []string{"/tmp", "/var/run", "/run", "/dev/shm"} {
		if !inContainer && (dir == volatile || strings.HasPrefix(dir, volatile+"/")) {
			c.Add("working directory", CheckWarning, "compose.working_dir %s is emptied by a reboot, and the data that containers keep below a relative path, and the files of their release, are lost with it: set it to a lasting directory such as /var/lib/wrktalk-agent/compose", dir)
			return
		}
	}
	c.Add("working directory", CheckOK, "%s", dir)
}

// Database makes sure that the database at address, for people, answers and has
// the tables that the agent needs. It reports whether more can be asked of it.
func (c *Checks) Database(ctx context.Context, of *Client, address string) bool {
	if err := of.DB.Ping(ctx); err != nil {
		c.Add("database", CheckFailed, "%s", Explain(err))
		return false
	}
	c.Add("database", CheckOK, "%s answers", address)
	if err := of.DB.CheckSchema(ctx, of.Target); err != nil {
		c.Add("schema", CheckFailed, "%s", Explain(err))
		return false
	}
	warnings, err := of.DB.SchemaWarnings(ctx)
	if err != nil {
		c.Add("schema", CheckFailed, "%s", Explain(err))
	}
	for _, text := range warnings {
		c.Add("schema", CheckWarning, "%s", text)
	}
	c.agentSchema(ctx, of)
	c.deploymentType(ctx, of)
	return true
}

// agentSchema says whether new tasks are announced, and why not.
func (c *Checks) agentSchema(ctx context.Context, of *Client) {
	switch s, err := of.DB.AgentSchema(ctx); {
	case err != nil:
		c.Add("schema", CheckFailed, "%s", Explain(err))
	case s.Grants != "":
		c.Add("schema", CheckWarning, "schema wrktalk_agent is there, but this user may not use it: `%s`; until then tasks are found by polling every %s", s.Grants, of.PollInterval)
	case s.Version == 0:
		c.Add("schema", CheckOK, "v4.2; tasks are found by polling every %s (wrktalk-agent migrate makes that immediate)", of.PollInterval)
	default:
		err := of.DB.Announced(ctx)
		if errors.Is(err, taskdb.ErrUnheard) {
			c.Add("schema", CheckWarning, "the agent's schema is there, but %s: tasks are found by polling every %s; let the agent connect to PostgreSQL itself, or with pool_mode = session",
				taskdb.ErrUnheard, of.PollInterval)
			return
		}
		if err != nil {
			c.Add("schema", CheckFailed, "%s", Explain(err))
			return
		}
		c.Add("schema", CheckOK, "v4.2 with the agent's schema, version %d", s.Version)
	}
}

// deploymentType warns when the database is about the other kind of deployment:
// most tasks without an artifact then belong to its agents.
func (c *Checks) deploymentType(ctx context.Context, of *Client) {
	types, err := of.DB.DeploymentTypes(ctx)
	own := string(of.Target.Deployment)
	switch {
	case err != nil:
		c.Add("deployment type", CheckFailed, "%s", Explain(err))
	case len(types) > 0 && !slices.Contains(types, own):
		c.Add("deployment type", CheckWarning, "agent.deployment_type is %s, deployment_config.deployment_type in the database %s: tasks that name no release are taken here only if they are rollbacks and no other type's release serves; correct one of the two",
			own, strings.Join(types, ", "))
	}
}
