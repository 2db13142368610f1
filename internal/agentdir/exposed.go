package agentdir

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Exposed says, in a clause, who besides root and the agent's user could put
// something else in the place of path, "" for nobody: the owner of a directory or
// of a symbolic link on the way to it, or everybody where they may write to a
// directory that is not sticky. What does not exist yet exposes nothing.
func Exposed(path string) string {
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if who := exposedBy(path); who != "" {
			return who
		}
	}
	if real, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		if who := exposedAt(filepath.Join(real, filepath.Base(path))); who != "" {
			return who
		}
	}
	return exposedAt(path)
}

// exposedAt looks at each step of the way to path, at links themselves and not at
// what they lead to.
func exposedAt(path string) string {
	for dir := filepath.Dir(filepath.Clean(path)); ; dir = filepath.Dir(dir) {
		if who := exposedBy(dir); who != "" || dir == "/" {
			return who
		}
	}
}

func exposedBy(path string) string {
	info, err := os.Lstat(path)
	if err != nil {
		return ""
	}
	switch {
	case !ownedBy(info, 0) && !ownedByUs(info):
		return fmt.Sprintf("user %d, to whom %s belongs", owner(info), path)
	case info.IsDir() && info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0:
		return fmt.Sprintf("every user, as %s is writable for all", path)
	}
	return ""
}
