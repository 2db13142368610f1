package helm

import (
	"context"
	"fmt"
	"io"

	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// Check returns in one line what there is to deploy to, or why nothing can be:
// the API does not answer, or the agent may not keep Helm's records there. What a
// chart needs beyond that is checked before it is deployed.
func Check(ctx context.Context, h *deployment.Helm) (string, error) {
	c, err := connect(h, requestTimeout, io.Discard)
	if err != nil {
		return "", err
	}
	if err := c.reachable(ctx); err != nil {
		return "", err
	}
	missing, err := c.namespaceMissing(ctx)
	if err != nil {
		return "", err
	}
	if err := c.checkRights(ctx, rightsFor(&rendered{}, nil, h.Namespace, missing)); err != nil {
		return "", err
	}
	server, err := c.client.Discovery().ServerVersion()
	if err != nil {
		return "", fmt.Errorf("read the version of the kubernetes API: %s", oneLine(err.Error()))
	}
	text := fmt.Sprintf("kubernetes %s at %s, namespace %s", server.GitVersion, c.config.Host, h.Namespace)
	past, err := c.readHistory(h.Release)
	if err != nil {
		return "", err
	}
	last := past.last()
	if last == nil {
		return fmt.Sprintf("%s, release %s is not installed yet", text, h.Release), nil
	}
	return fmt.Sprintf("%s, release %s at revision %d (%s)", text, h.Release, last.Version, last.Info.Status), nil
}
