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

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/flags"
	"github.com/docker/compose/v2/pkg/api"
	composelib "github.com/docker/compose/v2/pkg/compose"
	dockertypes "github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"

	"github.com/wrktalk/wrktalk-agent/internal/containerid"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// pingTimeout bounds one question whether the engine is there.
const pingTimeout = 15 * time.Second

// engine is the Docker engine and the Compose library on top of it.
type engine struct {
	api     client.APIClient
	compose api.Compose
	creates *creator      // what compose works with
	own     *ownContainer // that this process runs in, nil for none
}

// connect reaches the engine the way the docker CLI would: DOCKER_HOST, or the
// current context, or the default socket. An engine that does not answer is
// waited for until ctx ends, if say is not nil; say is told once.
func connect(ctx context.Context, out io.Writer, say func(error)) (*engine, error) {
	opts := flags.NewClientOptions()
	client, err := command.NewAPIClientFromFlags(opts, config.LoadDefaultConfigFile(out))
	if err != nil {
		return nil, fmt.Errorf("find the docker engine: %w", err)
	}
	e := &engine{api: client}
	if say == nil {
		if err = e.ping(ctx); err == nil {
			e.own, err = findOwn(ctx, client)
		}
	} else if err = e.waitReady(ctx, say); err == nil {
		err = e.retryUnavailable(ctx, say, func() (err error) {
			e.own, err = findOwn(ctx, client)
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	e.creates = &creator{APIClient: steady{client, e.own}}
	if e.compose, err = newLibrary(ctx, e.creates, out); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return e, nil
}

// newLibrary returns the Compose library on top of an engine's client.
func newLibrary(ctx context.Context, client client.APIClient, out io.Writer) (api.Compose, error) {
	cli, err := command.NewDockerCli(
		command.WithBaseContext(context.WithoutCancel(ctx)),
		command.WithInputStream(io.NopCloser(strings.NewReader(""))),
		command.WithCombinedStreams(out),
		command.WithAPIClient(client),
	)
	if err == nil {
		err = cli.Initialize(flags.NewClientOptions())
	}
	if err != nil {
		return nil, fmt.Errorf("prepare the compose library: %w", err)
	}
	return composelib.NewComposeService(cli, composelib.WithPrompt(decline(out))), nil
}

// steady is a client for the library, which asks for the engine's version once in
// the life of the process and takes a connection that was lost for the answer. It
// shows the library no container that the agent itself runs in.
type steady struct {
	client.APIClient
	own *ownContainer
}

// ContainerList is the client's, without the own container.
func (s steady) ContainerList(ctx context.Context, options container.ListOptions) ([]container.Summary, error) {
	list, err := s.APIClient.ContainerList(ctx, options)
	return s.own.without(list), err
}

func (s steady) ServerVersion(ctx context.Context) (v dockertypes.Version, err error) {
	err = unavailable.Do(ctx, func() error {
		v, err = s.APIClient.ServerVersion(ctx)
		if err != nil && !isConnError(err) {
			return retry.Permanent(err)
		}
		return err
	}, nil)
	return v, err
}

func (e *engine) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if _, err := e.api.Ping(ctx); err != nil {
		return unreachable(e.api.DaemonHost(), err)
	}
	return nil
}

// unavailable is how an engine that is away is tried again.
var unavailable = retry.Policy{First: 100 * time.Millisecond, Max: 2 * time.Second}

// waitReady returns nil once the engine answers, or why it does not when ctx ends
// or when waiting cannot help. say is told once that it has to be waited for.
func (e *engine) waitReady(ctx context.Context, say func(error)) error {
	var last error // before ctx ended
	err := unavailable.Do(ctx, func() error {
		err := e.ping(ctx)
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrPermission):
			return retry.Permanent(err)
		case ctx.Err() == nil:
			if last == nil {
				say(err)
			}
			last = err
		}
		return err
	}, nil)
	switch cause := context.Cause(ctx); {
	case err == nil || cause == nil:
		return err
	case last == nil:
		return cause
	default:
		return fmt.Errorf("%w; %w", last, cause)
	}
}

// isConnError reports whether err means that the connection to the engine was lost,
// as when it is restarted: what it was asked for may be asked for again.
func isConnError(err error) bool {
	var lost *connError
	return errors.As(err, &lost) || client.IsErrConnectionFailed(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// connError is an error that came about because the engine went away.
type connError struct{ error }

func (e *connError) Unwrap() error { return e.error }

// maxTries is how often an engine that is there may cut off what it is asked for
// before that is its answer.
const maxTries = 10

// retryUnavailable does what, and does it again whenever the engine was away
// meanwhile and is back, as long as ctx lives. what must be something that may be
// done twice, as everything is that Compose converges on.
func (e *engine) retryUnavailable(ctx context.Context, say func(error), what func() error) error {
	cut := 0 // in a row, by an engine that was there all the time
	return unavailable.Do(ctx, func() error {
		err := what()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || !isConnError(err):
			return retry.Permanent(err)
		}
		cut++
		if waitErr := e.waitReady(ctx, func(err error) { cut = 0; say(err) }); waitErr != nil {
			return retry.Permanent(waitErr)
		}
		if cut >= maxTries {
			return retry.Permanent(err)
		}
		return err // asked for again after a pause: the engine may end at what it is asked for
	}, nil)
}

// decline answers the one question the library asks: may it delete a volume,
// with its data, whose definition changed? Nobody is there to say yes.
func decline(out io.Writer) composelib.Prompt {
	return func(message string, _ bool) (bool, error) {
		_, _ = fmt.Fprintf(out, "wrktalk-deploy: %s No: its data stays, with the old definition.\n", message) // a log that cannot be written stops nothing
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
			if containerid.Inside() {
				return fmt.Errorf("the docker socket %s does not exist in the agent's container: start that with -v /var/run/docker.sock:%s, or set DOCKER_HOST", path, path)
			}
			return fmt.Errorf("the docker socket %s does not exist: install or start docker, or set DOCKER_HOST", path)
		case errors.Is(statErr, os.ErrPermission), errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EACCES),
			strings.Contains(err.Error(), "permission denied"):
			if st, ok := socketInfo(path); ok && containerid.Inside() {
				return &permissionError{fmt.Sprintf("the docker socket %s may not be opened by uid %d: start the agent's container with --group-add %d, or as root, which whoever may open the socket is anyway", path, os.Geteuid(), st.Gid)}
			}
			return &permissionError{fmt.Sprintf("the docker socket %s may not be opened by uid %d: add the agent's user to the docker group", path, os.Geteuid())}
		}
	}
	return fmt.Errorf("the docker engine at %s does not answer: %s", host, deploy.OneLine(err.Error()))
}

// socketInfo tells whose the socket at path is.
func socketInfo(path string) (*syscall.Stat_t, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}

// permissionError is an engine that will not be there for waiting.
type permissionError struct{ text string }

func (e *permissionError) Error() string        { return e.text }
func (e *permissionError) Is(target error) bool { return target == fs.ErrPermission }

func (e *engine) close() error { return e.api.Close() }

// list returns the project's containers, running or not, without those of
// `docker compose run` and without the agent's own. What they mount is named by the
// paths of this process.
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
	return e.own.localPaths(e.own.without(list)), nil
}

// inspected is a container, and all that the engine knows about it.
type inspected struct {
	container.Summary
	info container.InspectResponse
}

// inspect returns what list does, without containers that are gone meanwhile.
func (e *engine) inspect(ctx context.Context, project string) ([]inspected, error) {
	list, err := e.list(ctx, project)
	if err != nil {
		return nil, err
	}
	var found []inspected
	for _, c := range list {
		info, err := e.api.ContainerInspect(ctx, c.ID)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inspect container %s: %w", c.ID[:12], err)
		}
		found = append(found, inspected{c, info})
	}
	return found, nil
}
