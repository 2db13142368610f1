package compose

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/wrktalk/wrktalk-agent/internal/containerid"
)

// Check makes sure that the Docker engine answers and returns a sentence about it, and
// what of the working directory dir no release could mount. All of it, the error too,
// are sentences.
func Check(ctx context.Context, dir string) (text string, warnings []string, err error) {
	e, err := connect(ctx, io.Discard, nil)
	if err != nil {
		return "", nil, err
	}
	defer e.close()
	v, err := e.api.ServerVersion(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("ask the docker engine for its version: %w", err)
	}
	text = fmt.Sprintf("Docker Engine %s answers at %s", v.Version, e.api.DaemonHost())
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	host, why := e.own.outside(dir)
	switch {
	case e.own == nil && containerid.Inside():
		warnings = append(warnings, fmt.Sprintf("this container is none that the docker engine at %s knows: releases can mount their files only if compose.working_dir %s has the same path and the same files there", e.api.DaemonHost(), dir))
	case why != "":
		warnings = append(warnings, fmt.Sprintf("compose.working_dir %s %s, which the docker engine cannot mount from: releases that mount files of their own are refused; %s", dir, why, mountHint(dir)))
	case e.own != nil:
		text += fmt.Sprintf("; it has compose.working_dir at %s", host)
	}
	return text, warnings, nil
}

// mountHint says how the engine gets to see the working directory dir.
func mountHint(dir string) string {
	return fmt.Sprintf("start the agent's container with a volume there, as -v wrktalk-compose:%s", dir)
}
