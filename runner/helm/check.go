package helm

import (
	"context"
	"fmt"
	"io"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Check makes sure that the Kubernetes API answers, takes the agent's
// credentials and lets it keep a release's records, and returns a sentence about
// it. Its error is a sentence, too. What else a chart needs is checked before it
// is deployed.
func Check(ctx context.Context, h *protocol.Helm) (string, error) {
	c, err := connect(h, requestTimeout, deploy.NewReport(io.Discard, nil))
	if err != nil {
		return "", err
	}
	if err := c.reachable(ctx); err != nil {
		return "", err
	}
	p := permissions{}
	p.require("", "secrets", h.Namespace, "get", "list", "create", "update", "delete")
	if err := c.checkPermissions(ctx, p); err != nil {
		return "", err
	}
	v, err := c.client.Discovery().ServerVersion()
	if err != nil {
		return "", fmt.Errorf("ask the kubernetes API at %s for its version: %s", c.config.Host, deploy.OneLine(err.Error()))
	}
	return fmt.Sprintf("Kubernetes %s answers at %s and keeps releases in namespace %s", v.GitVersion, c.config.Host, h.Namespace), nil
}
