package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// checkTimeout bounds each check.
const checkTimeout = 30 * time.Second

// Results of a check.
const (
	checkOK   = "ok"
	checkWarn = "warning"
	checkFail = "failed"
)

// finding is the result of one check.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Text   string `json:"text"`
}

// checker runs the checks one after the other; a check whose ground another one
// has shown to be missing is left out.
type checker struct {
	app      *app
	cfg      *config.Config
	findings []finding
}

func (c *checker) add(check, result, format string, args ...any) {
	text := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	c.findings = append(c.findings, finding{check, result, text})
}

// runCheck is `wrktalk-agent check`.
func runCheck(a *app, args []string) error {
	fs := a.flags()
	a.outputFlag(fs)
	if _, err := a.parse(fs, args, 0, 0); err != nil {
		return err
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	c := &checker{app: a, cfg: cfg}
	c.configuration()
	c.staging()
	c.database()
	c.program()
	if cfg.Agent.DeploymentType == task.DeploymentDocker {
		c.workingDir()
		c.platform("docker")
	} else {
		c.platform("kubernetes", cfg.Kube.Namespace, cfg.Kube.Kubeconfig, cfg.Kube.Context)
	}
	c.maintenance()
	return c.report()
}

// report shows the findings and fails if one of them did.
func (c *checker) report() error {
	failed := false
	for _, f := range c.findings {
		failed = failed || f.Result == checkFail
	}
	if c.app.output == "json" {
		if err := c.app.printJSON(c.findings); err != nil {
			return err
		}
	} else {
		tw := tabwriter.NewWriter(c.app.stdout, 0, 0, 2, ' ', 0)
		for _, f := range c.findings {
			fmt.Fprintf(tw, "%s\t%s\t%s\n", f.Result, f.Check, f.Text)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	if failed {
		return errSilent
	}
	return nil
}

func (c *checker) configuration() {
	file := c.cfg.File
	if file == "" {
		file = "environment and defaults"
	}
	c.add("configuration", checkOK, "%s deployments, read from %s", c.cfg.Agent.DeploymentType, file)
	for _, w := range c.cfg.Warnings() {
		c.add("configuration", checkWarn, "%s", w)
	}
}

// staging makes sure that the directory can be written and that it has room.
func (c *checker) staging() {
	dir := c.cfg.Staging.Dir
	existing, err := writable(dir)
	if err != nil {
		c.add("staging", checkFail, "%v; change its owner or set staging.dir", err)
		return
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(existing, &st); err != nil {
		c.add("staging", checkFail, "%s: %v", existing, err)
		return
	}
	free := int64(st.Bavail) * st.Bsize
	const little = 1 << 30
	if free < little {
		c.add("staging", checkWarn, "%s has %d MiB free, which a large release may fill", dir, free>>20)
		return
	}
	c.add("staging", checkOK, "%s, %d GiB free", dir, free>>30)
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

func (c *checker) database() {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	db, err := c.app.database(ctx, c.cfg)
	if err != nil {
		c.add("database", checkFail, "%s", explain(err))
		return
	}
	defer db.Close()
	if err := db.Ping(ctx); err != nil {
		c.add("database", checkFail, "%s", explain(err))
		return
	}
	c.add("database", checkOK, "%s answers", c.cfg.DB.Address())
	if err := db.CheckSchema(ctx); err != nil {
		c.add("schema", checkFail, "%s", explain(err))
		return
	}
	switch v, err := db.Migrated(ctx); {
	case err != nil:
		c.add("schema", checkFail, "%s", explain(err))
	case v == 0:
		c.add("schema", checkOK, "v4.2; tasks are found by polling every %s (wrktalk-agent migrate makes that immediate)", c.cfg.Agent.PollInterval)
	default:
		c.add("schema", checkOK, "v4.2 with the agent's schema, version %d", v)
	}
	c.deploymentType(ctx, db)
	c.mail(ctx, db)
}

// deploymentType warns when the database is about the other kind of deployment:
// most tasks without an artifact then belong to its agents.
func (c *checker) deploymentType(ctx context.Context, db *taskdb.DB) {
	types, err := db.DeploymentTypes(ctx)
	own := string(c.cfg.Agent.DeploymentType)
	switch {
	case err != nil:
		c.add("deployment type", checkFail, "%s", explain(err))
	case len(types) > 0 && !slices.Contains(types, own):
		c.add("deployment type", checkWarn, "agent.deployment_type is %s, deployment_config.deployment_type in the database %s: tasks that name no release are taken here only if they are rollbacks and no other type's release serves; correct one of the two",
			own, strings.Join(types, ", "))
	}
}

// explain says what went wrong with the database, and what to do about it when
// that is known.
func explain(err error) string {
	if advice := taskdb.Explain(err); advice != "" {
		return err.Error() + ": " + advice
	}
	return err.Error()
}

// mail does a real handshake, login included, and counts the recipients.
func (c *checker) mail(ctx context.Context, db *taskdb.DB) {
	b := newBook(db, c.cfg)
	settings, err := b.MailSettings(ctx)
	if err != nil {
		c.add("mail", checkFail, "%s", explain(err))
		return
	}
	err = notifier.Check(ctx, settings, transport(c.cfg))
	switch {
	case errors.Is(err, notifier.ErrNotConfigured):
		c.add("mail", checkWarn, "deployment_config names no smtp_host: nobody is told about deployments")
		return
	case err != nil:
		c.add("mail", checkFail, "%v", err)
		return
	}
	admins, err := b.ActiveAdmins(ctx)
	switch {
	case err != nil:
		c.add("mail", checkFail, "%s", explain(err))
	case len(admins) == 0:
		c.add("mail", checkWarn, "%s answers, but table admin has no active administrator to write to", settings.Host)
	default:
		c.add("mail", checkOK, "%s answers; %d active administrator(s)", settings.Host, len(admins))
	}
}

func (c *checker) program() {
	path, err := deployProgram()
	if err != nil {
		c.add("wrktalk-deploy", checkFail, "%v", err)
		return
	}
	c.add("wrktalk-deploy", checkOK, "%s", path)
}

// workingDir makes sure that bundles can be kept, and warns about a directory
// that a reboot empties: the files that running containers mount lie there.
func (c *checker) workingDir() {
	dir := c.cfg.Compose.WorkingDir
	if _, err := writable(dir); err != nil {
		c.add("working directory", checkFail, "%v; change its owner or set compose.working_dir", err)
		return
	}
	for _, volatile := range []string{"/tmp", "/var/run", "/run", "/dev/shm"} {
		if dir == volatile || strings.HasPrefix(dir, volatile+"/") {
			c.add("working directory", checkWarn, "compose.working_dir %s is emptied by a reboot, and containers that mount files of their release lose them: set it to a lasting directory such as /var/lib/wrktalk-agent/compose", dir)
			return
		}
	}
	c.add("working directory", checkOK, "%s", dir)
}

// platform asks Docker or Kubernetes through wrktalk-deploy, the only program
// that knows how to find them.
func (c *checker) platform(name string, args ...string) {
	path, err := deployProgram()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"check"}, args...)...)
	cmd.Env = deployEnv(c.app.environ)
	out, err := cmd.CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(out))
		if text == "" {
			text = err.Error()
		}
		c.add(name, checkFail, "%s", text)
		return
	}
	c.add(name, checkOK, "%s", string(out))
}

// maintenance looks at the server that shows the page. Trouble there fails the
// check only where it would fail a deployment.
func (c *checker) maintenance() {
	page, err := maintenanceSwitch(c.cfg, nil)
	if err != nil {
		c.add("maintenance", checkFail, "%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	bad := checkWarn
	if c.cfg.Maintenance.Required {
		bad = checkFail
	}
	for _, f := range page.Check(ctx) {
		if f.OK {
			c.add("maintenance", checkOK, "%s", f.Text)
		} else {
			c.add("maintenance", bad, "%s", f.Text)
		}
	}
}
