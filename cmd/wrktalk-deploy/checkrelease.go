package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/runner/compose"
	"github.com/wrktalk/wrktalk-agent/runner/helm"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// checkRelease is for wrktalk-agent push: it says on standard error why the release
// of the job on standard input would be refused wherever it is deployed, as far as
// that can be told without the host or the cluster.
func checkRelease() int {
	var job protocol.Job
	if err := json.NewDecoder(io.LimitReader(os.Stdin, maxJob)).Decode(&job); err != nil {
		fmt.Fprintln(os.Stderr, "read the job:", err)
		return exitUsage
	}
	log.SetOutput(io.Discard) // Helm's, for whoever writes a chart
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case job.Compose != nil:
		err = compose.CheckRelease(ctx, &job)
	default:
		err = helm.CheckRelease(&job)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return exitDone
}
