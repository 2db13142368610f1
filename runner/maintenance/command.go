package maintenance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// command switches by two commands that the operator wrote. What they do cannot be
// looked at; only a probe URL can tell that a page is on already.
type command struct {
	enter, leave string
	probe        *probe
}

// prepare takes a 503 with Retry-After for an operator's page. A 503 without it is
// an application that is down, for which the page is to be switched on.
func (c *command) prepare(ctx context.Context, _ *record) (bool, error) {
	if c.probe == nil {
		return false, nil
	}
	a, err := c.probe.ask(ctx)
	if err != nil {
		return false, nil //nolint:nilerr // no answer is no page; the probe after the switch will tell
	}
	return a.page() && a.retryAfter, nil
}

func (c *command) enable(ctx context.Context, _ *record, _ func() error) error {
	if err := fault.Point("maintenance.command.enter:"); err != nil {
		return err
	}
	if err := runShell(ctx, c.enter); err != nil {
		return fmt.Errorf("run maintenance.enter_command: %w", err)
	}
	return nil
}

func (c *command) disable(ctx context.Context, _ *record) (bool, error) {
	if err := fault.Point("maintenance.command.leave:"); err != nil {
		return false, err
	}
	if err := runShell(ctx, c.leave); err != nil {
		return false, fmt.Errorf("run maintenance.leave_command: %w", err)
	}
	return false, nil
}

func (c *command) state(ctx context.Context, r *record) (on, ours bool, err error) {
	if r == nil && c.probe != nil {
		on, err = c.prepare(ctx, nil)
		return on, false, err
	}
	return r != nil, r != nil, nil
}

// How much of a command's output is kept, and how long whoever still holds its
// output open may delay its end.
const (
	outputTail  = 4 << 10 // bytes
	outputDelay = time.Second
)

// runShell runs line through /bin/sh in a process group of its own, which is
// killed when ctx ends. The error quotes the last line of the output, and not
// the command, which may hold a password.
func runShell(ctx context.Context, line string) error {
	_, err := shell(ctx, line, outputTail)
	return err
}

// shell is runShell, and returns the last bytes of the output too, at least keep of
// them if there are so many.
func shell(ctx context.Context, line string, keep int) (string, error) {
	out := &tail{keep: keep}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", line)
	cmd.Env, cmd.Dir = commandEnv(os.Getenv), "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = outputDelay // a daemon it started may keep the output open for ever
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil:
		return string(out.b), nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("killed: %w%s", context.Cause(ctx), out.last())
	case errors.As(err, &exit) && exit.ExitCode() == 127:
		return "", fmt.Errorf("command not found%s", out.last())
	default:
		return "", fmt.Errorf("%w%s", err, out.last())
	}
}

// commandEnv is all that a command learns of the agent's environment.
func commandEnv(get func(string) string) []string {
	// An unprivileged user's PATH often lacks the directories of the servers.
	path := strings.Trim(get("PATH")+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", ":")
	env := []string{"PATH=" + path}
	for _, name := range []string{"HOME", "USER", "LOGNAME", "LANG", "TZ"} {
		if v := get(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// tail keeps the last bytes written to it. It is read after the last write.
type tail struct {
	b    []byte
	keep int // bytes
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*t.keep {
		t.b = append(t.b[:0], t.b[len(t.b)-t.keep:]...)
	}
	return len(p), nil
}

// last returns ": " and the last line, 500 bytes of it at most; "" when nothing was
// said.
func (t *tail) last() string {
	b := bytes.TrimSpace(t.b)
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	if len(b) == 0 {
		return ""
	}
	return ": " + strings.ToValidUTF8(string(b[max(0, len(b)-500):]), "\uFFFD")
}
