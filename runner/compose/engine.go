package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
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

const pingTimeout = 15 * time.Second

// engine is the Docker engine and the Compose library on top of it.
type engine struct {
	api     client.APIClient
	compose api.Compose
}

// connect reaches the engine the way the docker CLI would: DOCKER_HOST, or the
// current context, or the default socket.
func connect(ctx context.Context, out io.Writer) (*engine, error) {
	progress.Mode = progress.ModePlain
	opts := flags.NewClientOptions()
	client, err := command.NewAPIClientFromFlags(opts, config.LoadDefaultConfigFile(out))
	if err != nil {
		return nil, fmt.Errorf("find the docker engine: %w", err)
	}
	pctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if _, err := client.Ping(pctx); err != nil {
		return nil, errors.Join(unreachable(client.DaemonHost(), err), client.Close())
	}
	cli, err := command.NewDockerCli(
		command.WithBaseContext(ctx),
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
	return &engine{api: client, compose: composelib.NewComposeService(cli, composelib.WithPrompt(decline(out)))}, nil
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
			return fmt.Errorf("the docker socket %s may not be opened by uid %d: add the agent's user to the docker group", path, os.Geteuid())
		}
	}
	return fmt.Errorf("the docker engine at %s does not answer: %s", host, oneLine(err.Error()))
}

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
