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

// RequestCancel leaves an operator's wish to have the task cancelled where its
// runner looks for it, with a reason that may be empty. It works on a directory
// that is moved meanwhile, and as root on one of the agent's user.
func (t *Task) RequestCancel(reason string) error {
	return t.with(func(root *os.Root) error {
		text := task.SafeText(strings.Join(strings.Fields(reason), " "), task.MaxMessage)
		if err := durable.WriteFile(root, CancelFile, []byte(text+"\n"), 0o600); err != nil {
			return err
		}
		// What root leaves behind, the agent's user could not shred.
		info, err := root.Stat(".")
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || int(st.Uid) == os.Geteuid() {
			return nil
		}
		return root.Lchown(CancelFile, int(st.Uid), int(st.Gid))
	})
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

// Held reports whether a process holds role's part of the directory: whether
// that component is running on it.
func (d *Dir) Held(role Role) (bool, error) {
	f, err := d.states[rolesState[role]].Open(".")
	if err != nil {
		return false, err
	}
	defer f.Close()
	// A shared lock, given back at once: it disturbs nobody who looks as well.
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}
