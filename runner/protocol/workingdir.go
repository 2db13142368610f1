package protocol

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
)

// WorkingDirs are the directories that Compose.WorkingDir may name.
var WorkingDirs = agentdir.Use{Name: "compose", Setting: "compose.working_dir", Former: isFormerWorkingDir}

// isFormerWorkingDir reports whether a version without markers has worked in the
// directory that holds entries. What else lies there, its releases may have had made:
// "../../x" of a Compose file was there.
func isFormerWorkingDir(entries []fs.DirEntry) bool {
	lock, releases := false, false
	for _, e := range entries {
		lock = lock || e.Name() == ".lock" && e.Type().IsRegular()
		releases = releases || e.Name() == FormerDir && e.IsDir()
	}
	return lock && releases
}

// CheckWorkingDir returns why dir cannot be Compose.WorkingDir, in a sentence: it is
// somebody else's. It changes nothing. A directory that does not exist is no error.
func CheckWorkingDir(dir string) error {
	if err := CheckOwner(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return WorkingDirs.Check(dir)
}

// CheckOwner refuses a directory that somebody else could have prepared, or could
// change: the reference's default lies in /tmp, where everybody may create it first.
// The error of one that is missing wraps fs.ErrNotExist.
func CheckOwner(dir string) error {
	uid := os.Geteuid()
	link, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at the working directory: %w", err)
	}
	if link.Mode()&fs.ModeSymlink != 0 && ownerOf(link) != uid && ownerOf(link) != 0 {
		return fmt.Errorf("%s is a symbolic link of uid %d: remove it, or set compose.working_dir to a directory of the agent's own", dir, ownerOf(link))
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Errorf("look at the working directory: %w", err)
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory: set compose.working_dir to one", dir)
	case ownerOf(info) != uid:
		return fmt.Errorf("%s belongs to uid %d, not to the agent's uid %d: set compose.working_dir to a directory of the agent's own", dir, ownerOf(info), uid)
	case info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0:
		return fmt.Errorf("%s may be written by others (mode %04o): run chmod go-w on it", dir, info.Mode().Perm())
	}
	return nil
}

func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
