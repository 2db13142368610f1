package compose

import (
	"context"
	"fmt"
	"io"
)

// Check makes sure that the Docker engine answers and returns a sentence about
// it. Its error is a sentence, too.
func Check(ctx context.Context) (string, error) {
	e, err := connect(ctx, io.Discard, nil)
	if err != nil {
		return "", err
	}
	defer e.close()
	v, err := e.api.ServerVersion(ctx)
	if err != nil {
		return "", fmt.Errorf("ask the docker engine for its version: %w", err)
	}
	return fmt.Sprintf("Docker Engine %s answers at %s", v.Version, e.api.DaemonHost()), nil
}
