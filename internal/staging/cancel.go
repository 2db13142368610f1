package staging

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// RequestCancel writes an operator's request to cancel the task where its runner
// looks for it, with a reason that may be empty. It works on a directory that is
// moved meanwhile, and as root on one of the agent's user.
func (t *Task) RequestCancel(reason string) error {
	return t.withRoot(func(root *os.Root) error {
		text := task.SafeText(strings.Join(strings.Fields(reason), " "), task.MaxMessage)
		return leaveFile(root, CancelFile, []byte(text+"\n"))
	})
}

// leaveFile writes a file for the runner into a task's directory. What root leaves
// behind, the agent's user could not shred: it becomes the directory's owner's.
func leaveFile(root *os.Root, name string, content []byte) error {
	if err := durable.WriteFile(root, name, content, 0o600); err != nil {
		return err
	}
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() {
		return nil
	}
	return root.Lchown(name, int(st.Uid), int(st.Gid))
}

// CancelRequested reports whether RequestCancel was called on the task whose
// directory root is, and with what reason.
func CancelRequested(root *os.Root) (reason string, ok bool, err error) {
	f, err := root.Open(CancelFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", false, nil
	case errors.Is(err, fs.ErrPermission): // root has just written it, and gives it away next
		return "", true, nil
	case err != nil:
		return "", false, fmt.Errorf("look for %s: %w", CancelFile, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, task.MaxMessage))
	if err != nil {
		return "", true, fmt.Errorf("read %s: %w", CancelFile, err)
	}
	return task.SafeText(strings.TrimSpace(string(data)), task.MaxMessage), true, nil
}
