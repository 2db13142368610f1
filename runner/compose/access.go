package compose

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/system"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// admit lets those through to the project directories who need it, and nobody else:
// the engine mounts as root, which asks no leave, unless its containers' root is
// another user of the host, who then mounts.
func (b *backend) admit(ctx context.Context, phase task.Phase) error {
	if !b.asked {
		err := b.retryUnavailable(ctx, phase, func() error {
			info, err := b.engine.api.Info(ctx)
			b.remapped = remapped(info, b.engine.api.DaemonHost())
			return err
		})
		if err != nil {
			return err
		}
		b.asked = true
	}
	return b.store.admit(b.job.Compose.Project, b.remapped)
}

// remapped reports whether the root of containers is a user of the host that is
// neither root nor the agent's.
func remapped(info system.Info, host string) bool {
	has := func(option string) bool {
		return slices.ContainsFunc(info.SecurityOptions, func(o string) bool {
			return slices.Contains(strings.Split(o, ","), "name="+option)
		})
	}
	if has("userns") {
		return true
	}
	if !has("rootless") {
		return false
	}
	socket, err := os.Stat(strings.TrimPrefix(host, "unix://"))
	return err != nil || owner(socket) != os.Geteuid()
}

// admit sets the modes of the directories above what containers mount.
func (s *store) admit(project string, others bool) error {
	names := []string{projectsDir, path.Join(projectsDir, project), protocol.FormerDir}
	mode := fs.FileMode(dirMode)
	if others {
		mode |= 0o011 // who is told a path may use it, nobody may list
		names = append(names, ".")
	}
	for _, name := range names {
		info, err := s.root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && info.IsDir() && info.Mode().Perm() != mode {
			err = s.root.Chmod(name, mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
