package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// createCluster makes the server's data directory. Without a password it is a
// copy of one that was made before: initdb takes seconds, most of them processor
// time.
func (p *Postgres) createCluster() error {
	if p.opts.Password != "" {
		return p.initdb(p.data())
	}
	template, err := p.clusterTemplate()
	if err != nil { // for want of a cache directory, say
		return p.initdb(p.data())
	}
	if out, err := exec.Command("cp", "--archive", template, p.data()).CombinedOutput(); err != nil {
		return fmt.Errorf("copy PostgreSQL cluster: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// clusterTemplate returns the data directory that clusters are copied from. It
// lies in the user's cache directory and is made once for each version.
func (p *Postgres) clusterTemplate() (string, error) {
	info, err := os.Stat(filepath.Join(p.bin, "initdb"))
	if err != nil {
		return "", fmt.Errorf("find the version of PostgreSQL: %w", err)
	}
	owner := os.Geteuid()
	if p.home.owner != nil {
		owner = int(p.home.owner.Uid)
	}
	key := p.bin + "\x00" + info.ModTime().String() + "\x00" + strconv.Itoa(owner)
	return cached("postgres", key, func(path string) error {
		// Whom the server runs as may not enter the cache directory.
		made := filepath.Join(p.home.path, "template")
		if err := p.initdb(made); err != nil {
			return err
		}
		if out, err := exec.Command("cp", "--archive", made, path).CombinedOutput(); err != nil {
			return fmt.Errorf("keep PostgreSQL cluster: %w: %s", err, bytes.TrimSpace(out))
		}
		return os.RemoveAll(made)
	})
}

// initdb makes a cluster in dir. The superuser's password goes through a file,
// so that it is never an argument.
func (p *Postgres) initdb(dir string) error {
	args := []string{
		"-D", dir, "-U", postgresUser, "-E", "UTF8", "--locale=C",
		"--no-sync", "--no-instructions", "--auth-local=trust", "--auth-host=trust",
	}
	if p.opts.Password != "" {
		file := filepath.Join(p.home.path, "password")
		if err := p.home.write(file, []byte(p.opts.Password+"\n")); err != nil {
			return err
		}
		args = append(args, "--pwfile="+file)
	}
	cmd := exec.Command(filepath.Join(p.bin, "initdb"), args...)
	cmd.Dir = p.home.path
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.home.owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("create PostgreSQL cluster: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
