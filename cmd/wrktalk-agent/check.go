package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/stateformat"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier/smtp"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// checkTimeout bounds each check.
const checkTimeout = 30 * time.Second

// checker runs the checks one after the other; a check whose ground another one
// has shown to be missing is left out.
type checker struct {
	operator.Checks
	app *app
	cfg *config.Config
}

// checkCommand is `wrktalk-agent check`.
func checkCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "check", Short: "check configuration, database, schema, engine, mail and staging", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error { return a.check() },
	}
	a.outputFlag(c)
	return c
}

func (a *app) check() error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	c := &checker{app: a, cfg: cfg}
	c.configuration()
	c.Staging(cfg.Staging.Dir)
	c.History(cfg.History.Dir, cfg.History.Keep)
	c.health()
	c.database()
	c.program()
	d := deploymentOf(cfg)
	if d.KeepsBundles {
		c.WorkingDir(d.workingDir)
	}
	c.platform(d)
	c.maintenance()
	return c.report()
}

// report shows the findings and fails if one of them did.
func (c *checker) report() error {
	failed := false
	for _, f := range c.Findings {
		failed = failed || f.Result == operator.CheckFailed
	}
	if c.app.output == "json" {
		if err := c.app.printJSON(c.Findings); err != nil {
			return err
		}
	} else {
		tw := tabwriter.NewWriter(c.app.stdout, 0, 0, 2, ' ', 0)
		for _, f := range c.Findings {
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
	c.Add("configuration", operator.CheckOK, "%s deployments, read from %s", c.cfg.Agent.DeploymentType, file)
	if err := stateformat.Check(c.cfg.StateDir); err != nil {
		c.Add("state", operator.CheckFailed, "%v", err)
	}
	for _, w := range c.cfg.Warnings() {
		c.Add("configuration", operator.CheckWarning, "%s", w)
	}
}

func (c *checker) health() {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	c.Listen(ctx, client(c.cfg, nil), listenRequired(c.cfg))
}

func (c *checker) database() {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	db, err := c.app.database(ctx, c.cfg)
	if err != nil {
		c.Add("database", operator.CheckFailed, "%s", operator.Explain(err))
		return
	}
	defer db.Close()
	if c.Database(ctx, client(c.cfg, db), c.cfg.DB.Address()) {
		c.mail(ctx, db)
	}
}

// mail does a real handshake, login included, and counts the recipients.
func (c *checker) mail(ctx context.Context, db *taskdb.DB) {
	settings, err := db.MailSettings(ctx, deploymentOf(c.cfg).target)
	if err != nil {
		c.Add("mail", operator.CheckFailed, "%s", operator.Explain(err))
		return
	}
	err = smtp.Check(ctx, settings, transport(c.cfg))
	switch {
	case errors.Is(err, smtp.ErrNotConfigured):
		c.Add("mail", operator.CheckWarning, "deployment_config names no smtp_host: nobody is told about deployments")
		return
	case err != nil:
		c.Add("mail", operator.CheckFailed, "%v", err)
		return
	}
	admins, err := db.ActiveAdmins(ctx)
	switch {
	case err != nil:
		c.Add("mail", operator.CheckFailed, "%s", operator.Explain(err))
	case len(admins) == 0:
		c.Add("mail", operator.CheckWarning, "%s answers, but table admin has no active administrator to write to", settings.Host)
	default:
		c.Add("mail", operator.CheckOK, "%s answers; %d active administrator(s)", settings.Host, len(admins))
	}
}

func (c *checker) program() {
	path, err := deployProgram()
	if err != nil {
		c.Add("wrktalk-deploy", operator.CheckFailed, "%v", err)
		return
	}
	c.Add("wrktalk-deploy", operator.CheckOK, "%s", path)
}

// platform asks the platform's server.
func (c *checker) platform(d deployment) {
	if _, err := deployProgram(); err != nil {
		return
	}
	text, warnings, err := c.app.checkPlatform(context.Background(), d)
	if err != nil {
		c.Add(string(d.Type), operator.CheckFailed, "%v", err)
		return
	}
	c.Add(string(d.Type), operator.CheckOK, "%s", text)
	for _, warning := range warnings {
		c.Add(string(d.Type), operator.CheckWarning, "%s", warning)
	}
}

// checkPlatform asks the platform's server through wrktalk-deploy, the only program
// that knows how to find it. All it returns are sentences.
func (a *app) checkPlatform(ctx context.Context, d deployment) (text string, warnings []string, err error) {
	path, err := deployProgram()
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"check"}, d.checkArgs...)...)
	cmd.Env = deployEnv(a.environ)
	out, err := cmd.CombinedOutput()
	said := strings.TrimSpace(string(out))
	if err != nil {
		if said != "" {
			err = errors.New(said)
		}
		return "", nil, err
	}
	lines := strings.Split(said, "\n")
	return lines[0], lines[1:], nil
}

// maintenance looks at the server that shows the page. Trouble there fails the
// check only where it would fail a deployment.
func (c *checker) maintenance() {
	page, err := maintenanceSwitch(c.cfg, nil)
	if err != nil {
		c.Add("maintenance", operator.CheckFailed, "%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	bad := operator.CheckWarning
	if c.cfg.Maintenance.Required {
		bad = operator.CheckFailed
	}
	if hint := maintenanceHint(c.cfg); hint != "" {
		c.Add("maintenance", operator.CheckWarning, "%s", hint)
		return
	}
	for _, f := range page.Check(ctx) {
		if f.OK {
			c.Add("maintenance", operator.CheckOK, "%s", f.Text)
		} else {
			c.Add("maintenance", bad, "%s", f.Text)
		}
	}
}
