//go:build faultinject

package unpack

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// TestFullDiskIsNotTheArtifactsFault fails each step in turn.
func TestFullDiskIsNotTheArtifactsFault(t *testing.T) {
	packed := new(archive).file("d/f", noise(2*bufferSize)).tgz(t)
	for _, step := range []string{"unpack.create:d/f", "unpack.write:d/f", "durable.synctree.sync:target/."} {
		passed := false
		restore := fault.Set(func(label string) error {
			if label != step {
				return nil
			}
			passed = true
			return syscall.ENOSPC
		})
		sum, err := Extract(context.Background(), newSandbox(t).root, bytes.NewReader(packed), int64(len(packed)), testLimits)
		restore()
		if !passed || !errors.Is(err, syscall.ENOSPC) || errors.As(err, new(*Refusal)) || errors.As(err, new(*SourceError)) {
			t.Errorf("%s (passed: %v): got %v, want a plain ENOSPC", step, passed, err)
		}
		if sum.Files != nil || strings.Contains(step, "unpack") && sum.SHA256 != "" {
			t.Errorf("%s: got files or a digest", step)
		}
	}
}
