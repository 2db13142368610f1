package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// runPush is `wrktalk-agent push`.
func runPush(a *app, args []string) error {
	fs := a.flags()
	a.outputFlag(fs)
	version := fs.String("version", "", "the release's `version`, such as 2.5.0 (required)")
	values := fs.String("values", "", "the release's values.yaml `file` (Helm)")
	env := fs.String("env", "", "the release's .env `file` (Compose)")
	rest, err := a.parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	if *version == "" {
		return usagef("--version is missing: name the release's version")
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	switch {
	case *values != "" && cfg.Agent.DeploymentType == task.DeploymentDocker:
		return usagef("--values is for Helm releases, and agent.deployment_type is docker: give a Compose release its .env with --env FILE")
	case *env != "" && cfg.Agent.DeploymentType == task.DeploymentKubernetes:
		return usagef("--env is for Compose releases, and agent.deployment_type is kubernetes: give a Helm release its values with --values FILE")
	}
	release := taskdb.NewArtifact{Version: *version, ChartType: cfg.Agent.DeploymentType.ChartType()}
	if release.Env, err = optionalFile(*env); err != nil {
		return err
	}
	if release.Values, err = optionalFile(*values); err != nil {
		return err
	}
	archive, cleanup, err := openRelease(rest[0])
	if err != nil {
		return fmt.Errorf("read release %s: %w", rest[0], err)
	}
	defer cleanup()
	if release.SHA256, release.Size, err = sum(archive); err != nil {
		return fmt.Errorf("read release %s: %w", rest[0], err)
	}
	release.Data = archive

	ctx := context.Background()
	db, err := a.database(ctx, cfg)
	if err != nil {
		return usageError{err}
	}
	defer db.Close()
	id, err := db.Push(ctx, release)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{
			"artifact_id": id, "release_version": release.Version, "chart_type": release.ChartType,
			"bytes": release.Size, "sha256": release.SHA256,
		})
	}
	fmt.Fprintf(a.stdout, "stored %s release %s: %d bytes, artifact %s\n", release.ChartType, release.Version, release.Size, id)
	return nil
}

func optionalFile(path string) (*string, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text := string(data)
	return &text, nil
}

// openRelease opens the archive at path; a directory, or a single Compose file,
// is packed into one first. The caller calls cleanup.
func openRelease(path string) (archive *os.File, cleanup func(), err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	ext := strings.ToLower(filepath.Ext(path))
	if !info.IsDir() && ext != ".yaml" && ext != ".yml" {
		f, err := os.Open(path)
		if err != nil {
			return nil, nil, err
		}
		if err := isGzip(f); err != nil {
			f.Close()
			return nil, nil, err
		}
		return f, func() { f.Close() }, nil
	}
	f, err := os.CreateTemp("", "wrktalk-push-*.tar.gz")
	if err != nil {
		return nil, nil, err
	}
	cleanup = func() { f.Close(); os.Remove(f.Name()) }
	if err := pack(f, path, info); err != nil {
		cleanup()
		return nil, nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, cleanup, err
}

func isGzip(f *os.File) error {
	magic := make([]byte, 2)
	if _, err := io.ReadFull(f, magic); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return errors.New("it is not a gzip'd tar archive; give a .tar.gz, a directory or a Compose file")
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// pack writes the directory, or the single file, at path as a tar.gz that is
// the same for the same content: no times, no owners, names in order.
func pack(w io.Writer, path string, info fs.FileInfo) error {
	gz := gzip.NewWriter(w)
	tw := tar.NewWriter(gz)
	var err error
	if info.IsDir() {
		err = packTree(tw, path)
	} else {
		err = packFile(tw, path, filepath.Base(path), info)
	}
	return errors.Join(err, tw.Close(), gz.Close())
}

func packTree(tw *tar.Writer, dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		return packFile(tw, path, filepath.ToSlash(name), info)
	})
}

func packFile(tw *tar.Writer, path, name string, info fs.FileInfo) error {
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Format: tar.FormatPAX}
	switch {
	case info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return tw.WriteHeader(h)
	case info.Mode().Type() == fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		return tw.WriteHeader(h)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is neither a file, a directory nor a symbolic link: a release cannot hold it", path)
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}

// sum returns the digest and the size of f, and leaves it at its beginning.
func sum(f *os.File) (digest string, size int64, err error) {
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", 0, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return hex.EncodeToString(h.Sum(nil)), size, err
}
