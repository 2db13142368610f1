// Package stateformat keeps an agent from working on state that a newer one left.
//
// What lies in the state, staging and working directories changes its layout
// together. One number stands for all of it, in the file Name of the state directory.
// A release that an older agent could misread raises Current; until then a downgrade
// is safe. The packages ask the same file before they install anything.
package stateformat

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
)

// Current is the format that this agent writes. It reads all older ones.
const Current = 1

// Name is the file with the number, as text.
const Name = "format"

// Check returns an error, in one sentence, when the state in dir is of a newer format
// than this agent knows. It changes nothing. Without the file, or the directory, the state
// is of the first format, or there is none.
func Check(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the format of the agent's state: %w", err)
	}
	format, err := strconv.Atoi(strings.TrimSpace(string(text)))
	switch {
	case err != nil || format < 1:
		return fmt.Errorf("read the format of the agent's state: %s holds no number: write %d into it if no newer agent has run here",
			filepath.Join(dir, Name), Current)
	case format > Current:
		return fmt.Errorf("the state in %s has format %d, this agent knows formats up to %d: a newer version left it; install that one again",
			dir, format, Current)
	}
	return nil
}

// Record makes Current the format of the state in dir, durably, after Check. It creates the
// directory, for this user alone, if there is none.
func Record(dir string) error {
	if err := Check(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("record the format of the agent's state: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("record the format of the agent's state: %w", err)
	}
	defer root.Close()
	want := []byte(strconv.Itoa(Current) + "\n")
	if there, err := root.ReadFile(Name); err == nil && string(there) == string(want) {
		return nil
	}
	if err := durable.WriteFile(root, Name, want, 0o644); err != nil {
		return fmt.Errorf("record the format of the agent's state: %w", err)
	}
	return nil
}
