package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/operator"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// pushFlags are the flags of push.
type pushFlags struct {
	version string
	texts   map[platform.Text]*string // files
}

// pushCommand is `wrktalk-agent push`.
func pushCommand(a *app) *cobra.Command {
	flags := pushFlags{texts: map[platform.Text]*string{}}
	c := &cobra.Command{
		Use: "push FILE --version V", Short: "store a release (tar.gz, directory or Compose file) in the database", Args: arguments(1, 1),
		Example: "  wrktalk-agent push ./release --version 2.5.0 --env prod.env",
		RunE:    func(_ *cobra.Command, args []string) error { return a.push(args[0], flags) },
	}
	a.outputFlag(c)
	c.Flags().StringVar(&flags.version, "version", "", "the release's `version`, such as 2.5.0 (required)")
	for _, text := range []platform.Text{platform.Values, platform.Env} {
		flags.texts[text] = c.Flags().String(text.Flag, "", fmt.Sprintf("the release's %s `file` (%s)", text.File, platform.Names(text.UsedBy())))
	}
	return c
}

func (a *app) push(path string, flags pushFlags) (err error) {
	if flags.version == "" {
		return usagef("--version is missing: name the release's version")
	}
	if err := operator.CheckVersion(flags.version); err != nil {
		return usagef("--version %w", err)
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	p := deploymentOf(cfg).Platform
	for text, file := range flags.texts {
		if *file != "" && text != p.Text {
			return usagef("--%s is for %s releases, and agent.deployment_type is %s: give a %s release its %s with --%s FILE",
				text.Flag, platform.Names(text.UsedBy()), p.Type, p.Name, p.Text.Name, p.Text.Flag)
		}
	}
	release := taskdb.NewArtifact{Version: flags.version, ChartType: p.Chart}
	if release.Env, err = optionalFile(platform.Env.Flag, *flags.texts[platform.Env], taskdb.MaxEnv); err != nil {
		return err
	}
	if release.Values, err = optionalFile(platform.Values.Flag, *flags.texts[platform.Values], taskdb.MaxValues); err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("interrupted: %s was not stored", path)
		}
	}()
	archive, err := operator.OpenArchive(ctx, path, p)
	if err != nil {
		return fmt.Errorf("read release %s: %w", path, err)
	}
	defer archive.Close()
	for _, note := range archive.Notes {
		fmt.Fprintf(a.stderr, "%s: %s\n", a.prefix(), note)
	}
	if err := a.checkRelease(ctx, cfg, archive, flags); err != nil {
		return fmt.Errorf("%s was not stored: %w", path, err)
	}
	release.Data, release.Size, release.SHA256 = archive, archive.Size, archive.SHA256

	db, err := a.database(ctx, cfg)
	if err != nil {
		return err
	}
	defer db.Close()
	id, stored, err := a.store(ctx, client(cfg, db), release)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{
			"artifact_id": id, "release_version": release.Version, "chart_type": release.ChartType,
			"bytes": release.Size, "sha256": release.SHA256, "stored": stored,
		})
	}
	what := "stored %s release %s: %d bytes, artifact %s\n"
	if !stored {
		what = "%s release %s exists already with the same content: %d bytes, artifact %s\n"
	}
	fmt.Fprintf(a.stdout, what, release.ChartType, release.Version, release.Size, id)
	return nil
}

// store stores the release, unless that very one is stored already.
func (a *app) store(ctx context.Context, c *operator.Client, release taskdb.NewArtifact) (id string, stored bool, err error) {
	former, err := c.DB.ArtifactByVersion(ctx, release.ChartType, release.Version)
	same := func(a, b *string) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	switch {
	case errors.Is(err, taskdb.ErrNotFound):
	case err != nil:
		return "", false, err
	case former.SHA256 == release.SHA256 && same(former.Env, release.Env) && same(former.Values, release.Values):
		return former.ID, false, nil
	default:
		fmt.Fprintf(a.stderr, "%s: warning: version %s exists already with other content (artifact %s of %s): from now on deploy %s takes the new one\n",
			a.prefix(), release.Version, former.ID, operator.Clock(timeOf(former.CreatedAt)), release.Version)
	}
	id, err = c.DB.Push(ctx, release)
	return id, true, err
}

// checkRelease refuses a release that the agent would refuse.
func (a *app) checkRelease(ctx context.Context, cfg *config.Config, archive *operator.Archive, flags pushFlags) error {
	d := deploymentOf(cfg)
	check := operator.ReleaseCheck{Limits: unpackLimits(cfg), Env: deployEnv(a.environ)}
	check.Job = protocol.Job{Schema: protocol.Schema, Action: protocol.ActionDeploy, Settings: d.settings}
	check.Job.Release = protocol.Release{Version: flags.version, SHA256: archive.SHA256}
	for text, file := range map[platform.Text]*string{platform.Env: &check.Job.Release.EnvFile, platform.Values: &check.Job.Release.ValuesFile} {
		if name := *flags.texts[text]; name != "" {
			abs, err := filepath.Abs(name)
			if err != nil {
				return err
			}
			*file = abs
		}
	}
	program, missing := deployProgram()
	check.Program = program
	if err := check.Run(ctx, archive); err != nil {
		return err
	}
	if missing != nil {
		fmt.Fprintf(a.stderr, "%s: warning: only the archive was checked, not what is in it: %v\n", a.prefix(), missing)
	}
	return nil
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// optionalFile reads the file that a flag names, nil for none. Only of a file that is
// no larger than limit, in bytes, all is read.
func optionalFile(flag, path string, limit int64) (*string, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read --%s: %w", flag, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read --%s: %w", flag, err)
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("read --%s: %s is larger than %d MiB, which is the most that can be deployed", flag, path, limit>>20)
	}
	text := string(data)
	return &text, nil
}
