// Command demo shows the agent at work on throw-away servers: a PostgreSQL of
// its own, a mail server, an application image built from scratch, and two
// releases deployed one after the other. It leaves nothing behind.
package main

import (
	"bufio"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

//go:embed release
var release embed.FS

const agent = "bin/wrktalk-agent"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	d := &demo{}
	steps := d.compose()
	if len(os.Args) > 1 && os.Args[1] == "kubernetes" {
		steps = d.kubernetes()
	}
	err := d.run(ctx, steps)
	if cleanErr := d.clean(); cleanErr != nil {
		err = errors.Join(err, fmt.Errorf("clean up: %w", cleanErr))
	}
	switch {
	case err == nil:
		fmt.Println("\nAll of it is gone again: what was deployed, database, mails, staging directory.")
	case ctx.Err() != nil:
		fmt.Println("\nStopped; all of it is gone again.")
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is what the demo has started so far.
type demo struct {
	dir string
	env []string // of wrktalk-agent, beside the plain environment

	deploymentType string

	pg      *testenv.Postgres
	smtp    *testenv.SMTP
	service *exec.Cmd
	log     *os.File
	undo    []func() error // what else is to be cleaned up, the last first
	hints   []string       // what a person may try while it lingers
}

func (d *demo) run(ctx context.Context, steps []func(context.Context) error) error {
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func title(format string, args ...any) { fmt.Printf("\n== "+format+"\n", args...) }

// prepare makes the demo's directory and the files of the release.
func (d *demo) prepare(context.Context) (err error) {
	if _, err := os.Stat(agent); err != nil {
		return fmt.Errorf("%s is not there: run make demo", agent)
	}
	if d.dir, err = os.MkdirTemp("", "wrktalk-demo-"); err != nil {
		return err
	}
	return fs.WalkDir(release, "release", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.Mkdir(filepath.Join(d.dir, name), 0o755)
		}
		data, err := release.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(d.dir, name), data, 0o644)
	})
}

// database starts PostgreSQL and the mail server, and puts into the database
// what a customer's has: the tables, the mail settings, two administrators.
func (d *demo) database(ctx context.Context) (err error) {
	title("Starting a throw-away PostgreSQL and a mail server")
	if d.pg, err = testenv.StartPostgres(testenv.PostgresOptions{}); err != nil {
		return err
	}
	if err := d.pg.CreateDatabase("wrktalk"); err != nil {
		return err
	}
	if d.smtp, err = testenv.StartSMTP(testenv.SMTPOptions{}); err != nil {
		return err
	}
	listen, err := freePort()
	if err != nil {
		return err
	}
	d.env = append(d.env,
		"WRKTALK_AGENT_DEPLOYMENT_TYPE="+d.deploymentType,
		"WRKTALK_AGENT_DB_HOST=127.0.0.1",
		"WRKTALK_AGENT_DB_PORT="+strconv.Itoa(d.pg.Port),
		"WRKTALK_AGENT_DB_SSL_MODE=disable",
		"WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER=none",
		"WRKTALK_AGENT_HTTP_LISTEN=127.0.0.1:"+strconv.Itoa(listen),
		"STATE_DIRECTORY="+filepath.Join(d.dir, "state"),
		"RUNTIME_DIRECTORY="+filepath.Join(d.dir, "run"),
	)
	if err := d.agent(ctx, "migrate", "--create"); err != nil {
		return err
	}
	_, err = d.pg.SQL("wrktalk", fmt.Sprintf(`
		insert into deployment_config (deployment_type, smtp_host, smtp_port, smtp_from)
			values ('%s', '%s', %d, 'WrkTalk Agent <agent@demo.example>');
		insert into admin (name, email) values ('Ada', 'ada@demo.example'), ('Grace', 'grace@demo.example');
		insert into admin (name, email, is_active) values ('Former', 'former@demo.example', false);`,
		d.deploymentType, d.smtp.Host, d.smtp.Port))
	return err
}

// start starts the agent as a service would.
func (d *demo) start(ctx context.Context) (err error) {
	if d.log, err = os.Create(filepath.Join(d.dir, "agent.log")); err != nil {
		return err
	}
	title("Starting the agent")
	fmt.Printf("$ wrktalk-agent run   (its log: %s)\n", d.log.Name())
	d.service = d.command("run")
	d.service.Stdout, d.service.Stderr = d.log, d.log
	d.service.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return d.service.Start()
}

// push stores the release in the directory of that name, with a text for --env or
// --values that is first written to file.
func (d *demo) push(ctx context.Context, name, version, flag, file, text string) error {
	file = filepath.Join(d.dir, file)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	return d.agent(ctx, "push", filepath.Join(d.dir, "release", name), "--version", version, "--"+flag, file)
}

// mails waits until n mails have arrived and lists them.
func (d *demo) mails(ctx context.Context, n int) error {
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	mails, err := d.smtp.Await(wait, n)
	if err != nil {
		return d.explain(fmt.Errorf("await the mails: %w", err))
	}
	title("The mails that arrived")
	for _, m := range mails {
		fmt.Printf("to %-20s %s\n", strings.Join(m.To, ", "), header(m.Raw, "Subject"))
	}
	return nil
}

// rows shows the tasks as the database has them.
func (d *demo) rows(ctx context.Context) error {
	title("Where things stand")
	if err := d.agent(ctx, "status"); err != nil {
		return err
	}
	title("The task rows")
	rows, err := d.pg.SQL("wrktalk", `select type, status, picked_up_at::time(0), completed_at::time(0), jsonb_pretty(result) from agent_task order by created_at`)
	if err != nil {
		return err
	}
	fmt.Println(rows)
	return nil
}

// staging lists the staging directory once the notifier has emptied it.
func (d *demo) staging(ctx context.Context) error {
	root := filepath.Join(d.dir, "state", "staging")
	deadline := time.Now().Add(time.Minute)
	for {
		dirs, files, err := count(root)
		if err != nil {
			return err
		}
		if files == 0 {
			fmt.Printf("%s: %s; no file left\n", root, strings.Join(dirs, "/ ")+"/")
			return nil
		}
		if time.Now().After(deadline) {
			return d.explain(fmt.Errorf("%d files are still in %s", files, root))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func count(root string) (dirs []string, files int, err error) {
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case e.Name() == agentdir.Marker:
		case !e.IsDir():
			files++
		case filepath.Dir(path) == root:
			dirs = append(dirs, e.Name())
		}
		return nil
	})
	return dirs, files, err
}

// linger keeps everything running for a person to look at.
func (d *demo) linger(ctx context.Context) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stdout.Fd())) {
		return nil
	}
	title("Everything is still running")
	for _, hint := range d.hints {
		fmt.Println(hint)
	}
	fmt.Printf("The agent's log: %s\n", d.log.Name())
	fmt.Print("Commands of your own need this environment:\n\n")
	for _, v := range d.env {
		fmt.Printf("  export %s\n", v)
	}
	fmt.Printf("\nTry: %s status; %s rollback --wait; %s check\n", agent, agent, agent)
	fmt.Print("Press Enter or Ctrl-C to stop everything and clean up. ")
	line := make(chan struct{})
	go func() {
		bufio.NewReader(os.Stdin).ReadString('\n')
		close(line)
	}()
	select {
	case <-line:
	case <-ctx.Done():
		fmt.Println()
	}
	return nil
}

// clean stops and removes everything that was started.
func (d *demo) clean() error {
	var errs []error
	if d.service != nil && d.service.Process != nil {
		d.service.Process.Signal(syscall.SIGTERM)
		d.service.Wait() // its exit code does not matter any more
	}
	for _, undo := range slices.Backward(d.undo) {
		errs = append(errs, undo())
	}
	if d.smtp != nil {
		errs = append(errs, d.smtp.Close())
	}
	if d.pg != nil {
		d.pg.Stop()
	}
	if d.log != nil {
		d.log.Close()
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}

// explain adds the agent's own words to an error.
func (d *demo) explain(err error) error {
	log, readErr := os.ReadFile(d.log.Name())
	if readErr != nil {
		return err
	}
	return fmt.Errorf("%w\nthe agent's log:\n%s", err, log)
}

// agent runs one command of wrktalk-agent and shows what it prints.
func (d *demo) agent(ctx context.Context, args ...string) error {
	shown := strings.ReplaceAll(strings.Join(args, " "), d.dir+"/", "")
	fmt.Println("$ wrktalk-agent", shown)
	cmd := d.command(args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("wrktalk-agent %s: %w", args[0], err)
	}
	return nil
}

func (d *demo) command(args ...string) *exec.Cmd {
	cmd := exec.Command(agent, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TERM=" + os.Getenv("TERM")}, d.env...)
	for _, name := range []string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"} {
		if v := os.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	return cmd
}

func header(raw []byte, name string) string {
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
