package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/wrktalk/wrktalk-agent/fetcher/unpack"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// ReleaseCheck looks at a release as the agent will, before it is stored.
type ReleaseCheck struct {
	Limits  unpack.Limits
	Program string       // wrktalk-deploy; "" to look at the archive alone
	Env     []string     // its environment
	Job     protocol.Job // settings, and the release's texts as files
}

// Run returns why the agent would refuse the archive or what is in it, as far as
// that can be told without its host: an error that is a *[RefusedError]. The archive
// is extracted into a temporary directory, which is gone afterwards, and reads from
// its beginning again.
func (c ReleaseCheck) Run(ctx context.Context, a *Archive) (err error) {
	dir, err := os.MkdirTemp("", "wrktalk-push-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	_, err = unpack.Extract(ctx, root, a, a.Size, c.Limits)
	var refused *unpack.Refusal
	switch {
	case errors.As(err, &refused):
		return &RefusedError{refused}
	case err != nil:
		return fmt.Errorf("%w (TMPDIR names another place to extract it to)", err)
	}
	if _, err := a.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if c.Program == "" {
		return nil
	}
	c.Job.Release.PayloadDir = dir
	return c.load(ctx)
}

// load has wrktalk-deploy read the release.
func (c ReleaseCheck) load(ctx context.Context) error {
	job, err := json.Marshal(c.Job)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, c.Program, protocol.CheckReleaseArg)
	var out bytes.Buffer
	cmd.Stdin, cmd.Env, cmd.Stderr = bytes.NewReader(job), c.Env, &out
	err = cmd.Run()
	text := strings.Join(strings.Fields(out.String()), " ")
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == 1 && text != "":
		return &RefusedError{errors.New(text)}
	case text != "":
		return fmt.Errorf("check the release with %s: %s", c.Program, text)
	}
	return fmt.Errorf("check the release with %s: %w", c.Program, err)
}

// RefusedError says why the agent would refuse a release.
type RefusedError struct{ reason error }

func (e *RefusedError) Error() string { return "the agent would refuse it: " + e.reason.Error() }

// Unwrap returns the reason.
func (e *RefusedError) Unwrap() error { return e.reason }
