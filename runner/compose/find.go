package compose

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
)

// findDir returns the directory of a bundle that has its Compose files: the bundle's
// root or, where that has none, the only one of its first-level directories, else of
// its second-level ones, that has; "" for none. It is relative to dir.
func findDir(dir *os.Root, has func(string) bool) (string, error) {
	level := []string{"."}
	for range 3 {
		var found []string
		for _, d := range level {
			if has(d) {
				found = append(found, d)
			}
		}
		found = preferVisible(found)
		if len(found) > 1 {
			return "", fmt.Errorf("find the Compose file: several directories of the release have one (%s): pack the right one alone, or have its file at the release's root", shorten(found))
		}
		if len(found) == 1 {
			return found[0], nil
		}
		var err error
		if level, err = directoriesBelow(dir, level); err != nil {
			return "", fmt.Errorf("list the release: %w", err)
		}
	}
	return "", nil
}

// noFile says what a bundle without a Compose file holds.
func noFile(dir *os.Root) error {
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return fmt.Errorf("list the release: %w", err)
	}
	var names []string
	other := ""
	for _, e := range entries {
		name := e.Name()
		switch ext := filepath.Ext(name); {
		case e.IsDir():
			name += "/"
		case other == "" && (ext == ".yaml" || ext == ".yml"):
			other = name
		}
		names = append(names, name)
	}
	found, advice := "it is empty", ""
	if len(names) > 0 {
		found = "it holds " + shorten(names)
	}
	if other != "" {
		advice = fmt.Sprintf("; if %s is the one, name it compose.yaml", other)
	}
	return fmt.Errorf("find the Compose file: neither the release's root nor a directory of its first two levels has a %s; %s%s",
		strings.Join(cli.DefaultFileNames, ", "), found, advice)
}

// directoriesBelow lists the directories in those of level, without what macOS
// puts beside the files of an archive.
func directoriesBelow(dir *os.Root, level []string) ([]string, error) {
	var below []string
	for _, d := range level {
		entries, err := fs.ReadDir(dir.FS(), d)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() && e.Name() != "__MACOSX" {
				below = append(below, filepath.Join(d, e.Name()))
			}
		}
	}
	return below, nil
}

// preferVisible leaves out directories that are hidden, or in a hidden one, such as
// .github, unless there is no other.
func preferVisible(dirs []string) []string {
	var visible []string
	for _, d := range dirs {
		if d == "." || !strings.HasPrefix(d, ".") && !strings.Contains(d, "/.") {
			visible = append(visible, d)
		}
	}
	if len(visible) == 0 {
		return dirs
	}
	return visible
}

// shorten joins names, of which there may be many.
func shorten(names []string) string {
	const most = 10
	if len(names) > most {
		names = append(names[:most:most], "…")
	}
	return strings.Join(names, ", ")
}

func firstFile(dir *os.Root, sub string, names []string) string {
	for _, n := range names {
		path := filepath.Join(sub, n)
		if info, err := dir.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}
