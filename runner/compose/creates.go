package compose

import (
	"context"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

// createGrace is how long an engine may take to answer a request that nobody waits
// for any more, before the work goes on without its answer.
const createGrace = 30 * time.Second

// creator is the engine as the Compose library sees it. An engine that is asked to
// create a container does so even if the question is given up meanwhile; the
// container would be left behind, the env of the failed release in its
// configuration. So such a question is never cut off: its answer is awaited, and the
// container removed.
type creator struct {
	client.APIClient
	asked sync.WaitGroup
}

type created struct {
	container.CreateResponse
	err error
}

// ContainerCreate is the client's, but for a ctx that ends meanwhile.
func (c *creator) ContainerCreate(ctx context.Context, config *container.Config, host *container.HostConfig, net *network.NetworkingConfig, platform *specs.Platform, name string) (container.CreateResponse, error) {
	if err := ctx.Err(); err != nil {
		return container.CreateResponse{}, err
	}
	answer, gone := make(chan created), make(chan struct{})
	c.asked.Go(func() {
		ctx := context.WithoutCancel(ctx)
		resp, err := c.APIClient.ContainerCreate(ctx, config, host, net, platform, name)
		select {
		case answer <- created{resp, err}:
		case <-gone:
			if err == nil {
				_ = c.ContainerRemove(ctx, resp.ID, container.RemoveOptions{Force: true}) // an engine that went away keeps it
			}
		}
	})
	select {
	case a := <-answer:
		return a.CreateResponse, a.err
	case <-ctx.Done():
		close(gone)
		return container.CreateResponse{}, ctx.Err()
	}
}

// settle waits until what was asked of the engine is answered, for a while.
func (c *creator) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, createGrace)
	defer cancel()
	answered := make(chan struct{})
	go func() {
		c.asked.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-ctx.Done():
	}
}
