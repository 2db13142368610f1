package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/flags"
	"github.com/docker/compose/v2/pkg/api"
	composelib "github.com/docker/compose/v2/pkg/compose"
	"github.com/docker/compose/v2/pkg/progress"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
)

const (
	pingTimeout = 15 * time.Second
	// Between two pings of an engine that is away.
	minPause = 100 * time.Millisecond
	maxPause = 2 * time.Second
)

// engine is the Docker engine and the Compose library on top of it.
type engine struct {
	api     client.APIClient
	compose api.Compose
}

// connect reaches the engine the way the docker CLI would: DOCKER_HOST, or the
// current context, or the default socket. An engine that does not answer is
// waited for until ctx ends, if say is not nil; say is told once.
func connect(ctx context.Context, out io.Writer, say func(error)) (*engine, error) {
	progress.Mode = progress.ModePlain
	opts := flags.NewClientOptions()
	client, err := command.NewAPIClientFromFlags(opts, config.LoadDefaultConfigFile(out))
	if err != nil {
		return nil, fmt.Errorf("find the docker engine: %w", err)
	}
	e := &engine{api: client}
	if say == nil {
		err = e.ping(ctx)
	} else {
		err = e.await(ctx, say)
	}
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	cli, err := command.NewDockerCli(
		command.WithBaseContext(context.WithoutCancel(ctx)),
		command.WithInputStream(io.NopCloser(strings.NewReader(""))),
		command.WithCombinedStreams(out),
		command.WithAPIClient(client),
	)
	if err == nil {
		err = cli.Initialize(opts)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the compose library: %w", err), client.Close())
	}
	e.compose = composelib.NewComposeService(cli, composelib.WithPrompt(decline(out)))
	return e, nil
}

func (e *engine) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if _, err := e.api.Ping(ctx); err != nil {
		return unreachable(e.api.DaemonHost(), err)
	}
	return nil
}

// await returns nil once the engine answers, or why it does not when ctx ends or
// when waiting cannot help. say is told once that it has to be waited for.
func (e *engine) await(ctx context.Context, say func(error)) error {
	var last error
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		err := e.ping(ctx)
		if err == nil || errors.Is(err, fs.ErrPermission) {
			return err
		}
		if ctx.Err() == nil {
			if last == nil {
				say(err)
			}
			last = err
			rest(ctx, pause)
		}
		if cause := context.Cause(ctx); cause != nil {
			if last == nil {
				return cause
			}
			return fmt.Errorf("%w; %w", last, cause)
		}
	}
}

// rest waits for d, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// lost reports whether err means that the connection to the engine was lost, as
// when it is restarted: what it was asked for may be asked for again.
func lost(err error) bool {
	var g *gone
	return errors.As(err, &g) || client.IsErrConnectionFailed(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// gone is an error that came about because the engine went away.
type gone struct{ error }

func (g *gone) Unwrap() error { return g.error }

// maxTries is how often an engine that is there may cut off what it is asked for
// before that is its answer.
const maxTries = 10

// persist does what, and does it again whenever the engine was away meanwhile
// and is back, as long as ctx lives. what must be something that may be done
// twice, as everything is that Compose converges on.
func (e *engine) persist(ctx context.Context, say func(error), what func() error) error {
	cut := 0 // in a row, by an engine that was there all the time
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		err := what()
		if ctx.Err() != nil || !lost(err) {
			return err
		}
		cut++
		awaited := e.await(ctx, func(err error) {
			cut = 0
			say(err)
		})
		if awaited != nil {
			return awaited
		}
		if cut >= maxTries {
			return err
		}
		rest(ctx, pause) // the engine may end at what it is asked for
	}
}

// decline answers the one question the library asks: may it delete a volume,
// with its data, whose definition changed? Nobody is there to say yes.
func decline(out io.Writer) composelib.Prompt {
	return func(message string, _ bool) (bool, error) {
		note(out, "%s No: its data stays, with the old definition.", message)
		return false, nil
	}
}

// unreachable says in one sentence why the engine does not answer.
func unreachable(host string, err error) error {
	path, isSocket := strings.CutPrefix(host, "unix://")
	if isSocket {
		_, statErr := os.Stat(path)
		switch {
		case errors.Is(statErr, os.ErrNotExist):
			return fmt.Errorf("the docker socket %s does not exist: install or start docker, or set DOCKER_HOST", path)
		case errors.Is(statErr, os.ErrPermission), errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EACCES),
			strings.Contains(err.Error(), "permission denied"):
			return &forbidden{fmt.Sprintf("the docker socket %s may not be opened by uid %d: add the agent's user to the docker group", path, os.Geteuid())}
		}
	}
	return fmt.Errorf("the docker engine at %s does not answer: %s", host, oneLine(err.Error()))
}

// forbidden is an engine that will not be there for waiting.
type forbidden struct{ text string }

func (f *forbidden) Error() string        { return f.text }
func (f *forbidden) Is(target error) bool { return target == fs.ErrPermission }

func (e *engine) close() error { return e.api.Close() }

// list returns the project's containers, running or not, without those of
// `docker compose run`.
func (e *engine) list(ctx context.Context, project string) ([]container.Summary, error) {
	list, err := e.api.ContainerList(ctx, container.ListOptions{
		All: true,
		Filters: filters.NewArgs(
			filters.Arg("label", api.ProjectLabel+"="+project),
			filters.Arg("label", api.OneoffLabel+"=False"),
		),
	})
	if err != nil {
		return nil, fmt.Errorf("list the containers of project %s: %w", project, err)
	}
	return list, nil
}

// note writes a line of our own among what Compose says.
func note(out io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(out, "wrktalk-deploy: "+format+"\n", args...) // a log that cannot be written stops nothing
}

// oneLine joins the lines of s, so that it fits a sentence.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
