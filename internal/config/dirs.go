package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

const programName = "wrktalk-agent"

// stateDir returns where lasting state lives: what systemd says, else
// /var/lib/wrktalk-agent for root, else the XDG directory.
func (l *loader) stateDir() (string, error) {
	if dir := l.env["STATE_DIRECTORY"]; dir != "" {
		return firstDir("STATE_DIRECTORY", dir)
	}
	if l.src.Euid == 0 {
		return "/var/lib/" + programName, nil
	}
	// The XDG specification has relative paths ignored.
	if dir := l.env["XDG_STATE_HOME"]; filepath.IsAbs(dir) {
		return filepath.Join(dir, programName), nil
	}
	if home := l.env["HOME"]; filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", programName), nil
	}
	return "", errors.New("cannot tell where to keep state: set STATE_DIRECTORY, XDG_STATE_HOME or HOME to an absolute path")
}

// runtimeDir returns where sockets and locks live.
func (l *loader) runtimeDir() (string, error) {
	if dir := l.env["RUNTIME_DIRECTORY"]; dir != "" {
		return firstDir("RUNTIME_DIRECTORY", dir)
	}
	if l.src.Euid == 0 {
		return "/run/" + programName, nil
	}
	if dir := l.env["XDG_RUNTIME_DIR"]; filepath.IsAbs(dir) {
		return filepath.Join(dir, programName), nil
	}
	temp := l.env["TMPDIR"]
	if !filepath.IsAbs(temp) {
		temp = "/tmp"
	}
	return filepath.Join(temp, programName+"-"+strconv.Itoa(l.src.Euid)), nil
}

// firstDir returns the first of the directories systemd lists, colons between.
func firstDir(variable, list string) (string, error) {
	dir, _, _ := strings.Cut(list, ":")
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("%s: %q is not an absolute path", variable, dir)
	}
	return filepath.Clean(dir), nil
}
