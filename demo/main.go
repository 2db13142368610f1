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
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

//go:embed release
var release embed.FS

const (
	project = "wrktalk-demo"
	agent   = "bin/wrktalk-agent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &demo{}
	err := d.run(ctx)
	if cleanErr := d.clean(); cleanErr != nil {
		err = errors.Join(err, fmt.Errorf("clean up: %w", cleanErr))
	}
	switch {
	case err == nil:
		fmt.Println("\nAll of it is gone again: containers, images, database, mails, staging directory.")
	case ctx.Err() != nil:
		fmt.Println("\nStopped; all of it is gone again.")
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is what the demo has started so far.
type demo struct {
	dir     string
	env     []string // of wrktalk-agent, beside the plain environment
	pg      *testenv.Postgres
	smtp    *testenv.SMTP
	images  []string
	service *exec.Cmd
	log     *os.File
	port    int
}

func (d *demo) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		d.prepare, d.buildImages, d.database, d.start, d.first, d.second, d.show, d.linger,
	} {
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

func image(version string) string { return project + "/web:" + version }

// buildImages builds the application's images, which hold one static program each.
func (d *demo) buildImages(ctx context.Context) error {
	title("Building the sample application, versions 1.0.0 and 1.1.0")
	if err := testenv.CheckDocker(ctx); err != nil {
		return err
	}
	for _, v := range []string{"1.0.0", "1.1.0"} {
		if err := testenv.BuildAppImage(ctx, image(v), v, time.Second); err != nil {
			return err
		}
		d.images = append(d.images, image(v))
	}
	return nil
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
	if d.port, err = freePort(); err != nil {
		return err
	}
	listen, err := freePort()
	if err != nil {
		return err
	}
	d.env = []string{
		"WRKTALK_AGENT_DEPLOYMENT_TYPE=docker",
		"WRKTALK_AGENT_DB_HOST=127.0.0.1",
		"WRKTALK_AGENT_DB_PORT=" + strconv.Itoa(d.pg.Port),
		"WRKTALK_AGENT_DB_SSL_MODE=disable",
		"WRKTALK_AGENT_COMPOSE_PROJECT_NAME=" + project,
		"WRKTALK_AGENT_COMPOSE_WORKING_DIR=" + filepath.Join(d.dir, "compose"),
		"WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER=none",
		"WRKTALK_AGENT_HTTP_LISTEN=127.0.0.1:" + strconv.Itoa(listen),
		"STATE_DIRECTORY=" + filepath.Join(d.dir, "state"),
		"RUNTIME_DIRECTORY=" + filepath.Join(d.dir, "run"),
	}
	if err := d.agent(ctx, "migrate", "--create"); err != nil {
		return err
	}
	_, err = d.pg.SQL("wrktalk", fmt.Sprintf(`
		insert into deployment_config (deployment_type, compose_project_name, smtp_host, smtp_port, smtp_from)
			values ('docker', '%s', '%s', %d, 'WrkTalk Agent <agent@demo.example>');
		insert into admin (name, email) values ('Ada', 'ada@demo.example'), ('Grace', 'grace@demo.example');
		insert into admin (name, email, is_active) values ('Former', 'former@demo.example', false);`,
		project, d.smtp.Host, d.smtp.Port))
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

func (d *demo) first(ctx context.Context) error {
	title("The first release")
	return d.deploy(ctx, "1.0.0", "Hello")
}

func (d *demo) second(ctx context.Context) error {
	title("The next release")
	return d.deploy(ctx, "1.1.0", "Hello again")
}

// deploy pushes a release, deploys it and asks the application who it is.
func (d *demo) deploy(ctx context.Context, version, greeting string) error {
	env := filepath.Join(d.dir, version+".env")
	text := fmt.Sprintf("IMAGE=%s\nPORT=%d\nGREETING=%s\nDB_PASSWORD=never-leaves-the-row\n", image(version), d.port, greeting)
	if err := os.WriteFile(env, []byte(text), 0o600); err != nil {
		return err
	}
	if err := d.agent(ctx, "push", filepath.Join(d.dir, "release"), "--version", version, "--env", env); err != nil {
		return err
	}
	if err := d.agent(ctx, "deploy", version, "--wait"); err != nil {
		return d.explain(err)
	}
	body, err := get(ctx, fmt.Sprintf("http://127.0.0.1:%d/", d.port))
	if err != nil {
		return err
	}
	fmt.Printf("$ curl http://127.0.0.1:%d/\n%s\n", d.port, body)
	return nil
}

// show prints what a person wants to see in the end.
func (d *demo) show(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	mails, err := d.smtp.Await(wait, 4)
	if err != nil {
		return d.explain(fmt.Errorf("await the mails: %w", err))
	}
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
	title("The container, as the standard tools see it")
	ps, err := testenv.RunDocker(ctx, "ps", "--filter", "label=com.docker.compose.project="+project,
		"--format", "table {{.Names}}\t{{.Image}}\t{{.Status}}\t{{.Ports}}")
	if err != nil {
		return err
	}
	fmt.Println(ps)
	title("The mails that arrived")
	for _, m := range mails {
		fmt.Printf("to %-20s %s\n", strings.Join(m.To, ", "), header(m.Raw, "Subject"))
	}
	title("The staging directory")
	return d.staging(ctx)
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
	fmt.Printf("The application: http://127.0.0.1:%d/\n", d.port)
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
	ctx := context.Background()
	var errs []error
	if d.service != nil && d.service.Process != nil {
		d.service.Process.Signal(syscall.SIGTERM)
		d.service.Wait() // its exit code does not matter any more
	}
	if len(d.images) > 0 {
		errs = append(errs, testenv.RemoveComposeProject(ctx, project))
	}
	for _, ref := range d.images {
		errs = append(errs, testenv.RemoveImage(ctx, ref))
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

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask the application: %w", err)
	}
	defer res.Body.Close()
	body := make([]byte, 256)
	n, _ := res.Body.Read(body)
	return strings.TrimSpace(string(body[:n])), nil
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
