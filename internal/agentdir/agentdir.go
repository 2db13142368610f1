// Package agentdir keeps the agent to directories of its own. What it is pointed
// at by mistake belongs to somebody else: there it removes nothing, and changes
// neither contents nor modes.
//
// A directory is the agent's when a marker file in it says so. One without is
// taken only if it is empty, or if it holds exactly what a version of the agent
// that wrote no markers left.
package agentdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
)

// Marker is the name of the file that marks a directory as the agent's.
const Marker = ".wrktalk-agent"

// markerSize is how much of a marker is read, in bytes.
const markerSize = 4 << 10

// Use is what the agent needs a directory for.
type Use struct {
	// Name is one word, which stands in the marker: a directory for one use is
	// none for another.
	Name string
	// Setting is the key of the configuration that names the directory.
	Setting string
	// Former reports whether entries are all that a version of the agent without
	// markers left in its directory; nil is never. Entries is not empty, and
	// without what Check passes over.
	Former func(entries []fs.DirEntry) bool
}

// Check reports why the directory at path is none that the agent may use: an
// error in one sentence, which names the setting. It changes nothing. A directory
// that does not exist, or is empty, is no error; symbolic links are followed.
// Passed over are lost+found, and what a crash left of a marker. Whose the directory
// is, and who may write to it, is the caller's to judge.
func (u Use) Check(path string) error {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return u.checkSystem(path, nil, false)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", u.Setting, path, err)
	}
	defer root.Close()
	_, err = u.check(root, path)
	return err
}

// Open returns the directory at path, which the caller closes. It creates the
// directory with mode 0700 if there is none, and marks it, durably, before
// anything else can lie in it. What Check refuses is left as it is.
func (u Use) Open(path string) (*os.Root, error) {
	if err := u.Check(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("%s: %w", u.Setting, err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u.Setting, err)
	}
	for try := 1; ; try++ {
		marked, err := u.check(root, path)
		if err == nil && !marked {
			err = u.mark(root)
		}
		switch {
		case err == nil:
			return root, nil
		case try < markTries && errors.Is(err, fs.ErrNotExist):
		default:
			return nil, errors.Join(err, root.Close())
		}
	}
}

// markTries is how often a directory is tried to be marked. Another process of the agent
// that marks it at the same moment takes what we write for what a crash left.
const markTries = 100

// mark marks a directory, and removes what a crash left of an earlier try.
func (u Use) mark(root *os.Root) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type().IsRegular() && durable.IsTemp(e.Name()) {
			if err := root.Remove(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return durable.WriteFile(root, Marker, []byte(u.marker()), 0o644)
}

// marker is the content of the marker file.
func (u Use) marker() string {
	return "wrktalk-agent " + u.Name + "\n\n" +
		"This directory belongs to WrkTalk Agent (" + u.Setting + " in its configuration),\n" +
		"which removes what lies here when it is no longer needed. Keep nothing of your\n" +
		"own in it. Without this file the agent does not use it.\n"
}

// check is Check of an open directory. It reports whether that is marked.
func (u Use) check(root *os.Root, path string) (marked bool, err error) {
	dir, err := root.Open(".")
	if err != nil {
		return false, fmt.Errorf("%s %s: %w", u.Setting, path, err)
	}
	defer dir.Close()
	info, err := dir.Stat()
	if err != nil {
		return false, fmt.Errorf("%s %s: %w", u.Setting, path, err)
	}
	use, err := markedFor(root, info)
	if err != nil {
		return false, fmt.Errorf("%s %s: read what marks it: %w", u.Setting, path, err)
	}
	switch use {
	case u.Name:
		return true, u.checkSystem(path, info, true)
	case "":
	default:
		return false, fmt.Errorf("%s %s is the agent's directory for another use (%s): name one that it does not share", u.Setting, path, use)
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return false, fmt.Errorf("%s %s: %w", u.Setting, path, err)
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		if e.IsDir() {
			return e.Name() == "lost+found"
		}
		return e.Type().IsRegular() && (e.Name() == Marker || durable.IsTemp(e.Name()))
	})
	former := len(entries) > 0 && u.Former != nil && u.Former(entries)
	if err := u.checkSystem(path, info, former); err != nil {
		return false, err
	}
	if len(entries) == 0 || former {
		return false, nil
	}
	return false, fmt.Errorf("%s %s is in use by something else: it holds %s, and nothing marks it as the agent's; it is left as it is: name an empty directory, or one that does not exist", u.Setting, path, listed(entries))
}

// markedFor returns the use that the directory dir is marked for, "" for none. A
// marker of another user than the directory's, ours or root says nothing: who may
// write to the directory could have the agent take it over.
func markedFor(root *os.Root, dir fs.FileInfo) (string, error) {
	info, err := root.Lstat(Marker)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case !info.Mode().IsRegular() || info.Size() > markerSize:
		return "", nil
	case !ownedByUs(info) && !ownedBy(info, 0) && !ownedBy(info, owner(dir)):
		return "", nil
	}
	b, err := root.ReadFile(Marker)
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	use, ok := strings.CutPrefix(first, "wrktalk-agent ")
	if !ok || use == "" || strings.ContainsFunc(use, func(r rune) bool { return r < 'a' || r > 'z' }) {
		return "", nil
	}
	return use, nil
}

func ownedByUs(info fs.FileInfo) bool { return ownedBy(info, os.Geteuid()) }

func ownedBy(info fs.FileInfo, uid int) bool { return owner(info) == uid }

// owner returns the user that a file belongs to, -1 where that is not known.
func owner(info fs.FileInfo) int {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(st.Uid)
}

// listed names the first entries, for people.
func listed(entries []fs.DirEntry) string {
	const most = 3
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	var names []string
	for _, e := range entries[:min(most, len(entries))] {
		names = append(names, fmt.Sprintf("%.60q", e.Name()))
	}
	text := strings.Join(names, ", ")
	if more := len(entries) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// systemDirs are the system's, whatever they hold at the moment.
var systemDirs = []string{
	"/", "/bin", "/boot", "/dev", "/dev/shm", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/media",
	"/mnt", "/opt", "/proc", "/root", "/run", "/run/lock", "/run/user", "/sbin", "/selinux", "/srv", "/sys", "/tmp", "/usr", "/usr/bin",
	"/usr/lib", "/usr/libexec", "/usr/local", "/usr/local/bin", "/usr/local/lib", "/usr/local/share", "/usr/sbin",
	"/usr/share", "/usr/src", "/var", "/var/backups", "/var/cache", "/var/lib", "/var/lib/docker", "/var/local", "/var/lock", "/var/log",
	"/var/mail", "/var/opt", "/var/run", "/var/spool", "/var/tmp",
}

// checkSystem refuses a directory of the system, by whatever path. Ours is
// whether it holds what the agent left there: an older version took any directory,
// and goes on with one that nobody else may write to. info is nil where there is
// no directory.
func (u Use) checkSystem(path string, info fs.FileInfo, ours bool) error {
	if ours && ownedByUs(info) && info.Mode().Perm()&0o022 == 0 {
		return nil
	}
	for _, dir := range systemDirs {
		same := filepath.Clean(path) == dir
		if info != nil && !same {
			of, err := os.Stat(dir)
			same = err == nil && os.SameFile(info, of)
		}
		if same {
			return fmt.Errorf("%s %s is a directory of the system: name one that only the agent uses, such as %s", u.Setting, path,
				filepath.Join("/var/lib/wrktalk-agent", u.Name))
		}
	}
	return nil
}
