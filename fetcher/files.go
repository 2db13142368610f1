package fetcher

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/fetcher/unpack"
	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// stageFiles writes everything the runner needs and lists it in m.
func (f *Fetcher) stageFiles(ctx context.Context, d *staging.Draft, m *staging.Manifest) error {
	if f.MaxAttempts > 0 && m.StageAttempts > f.MaxAttempts {
		return reject("staging began %d times and was never finished: the agent ended each time, so look for what kills it (memory, a limit) before asking for the task again", m.StageAttempts-1)
	}
	a, err := f.findArtifact(ctx, m)
	if err != nil {
		return err
	}
	// A release that was taken over may be half applied: it is never too late to
	// finish it.
	overdue := f.MaxOverdue > 0 && m.ClaimDelay > f.MaxOverdue && !m.TakenOver
	tooLate := reject("the task was due at %s and no agent took it until %s later, which is more than agent.max_overdue (%s): ask for it again if it is still wanted",
		m.DueAt.UTC().Format("2006-01-02 15:04:05 MST"), m.ClaimDelay.Round(time.Second), f.MaxOverdue)
	if a == nil {
		if overdue {
			return tooLate
		}
		m.Release = staging.Release{ChartType: f.Target.Chart()}
		return f.stagePrevious(ctx, d, m)
	}
	m.Release = releaseOf(a)
	if a.ChartType != f.Target.Chart() {
		return reject("release artifact %s (%s) has chart type %q, but this agent deploys %q", a.Version, a.ID, a.ChartType, f.Target.Chart())
	}
	if overdue {
		return tooLate
	}
	if err := checkTexts(a); err != nil {
		return err
	}
	f.event(d, task.PhaseStaging, fmt.Sprintf("staging %s %s, %d bytes", a.ChartType, a.Version, a.Size))
	files, err := f.unpack(ctx, d.Root(), staging.PayloadDir, a)
	if err != nil {
		return err
	}
	m.Files = files
	if err := writeTexts(d.Root(), "", a, m); err != nil {
		return err
	}
	return f.stagePrevious(ctx, d, m)
}

func releaseOf(a *taskdb.Artifact) staging.Release {
	return staging.Release{ArtifactID: a.ID, Version: a.Version, ChartType: a.ChartType, SHA256: a.SHA256, Bytes: a.Size}
}

// findArtifact returns the release the task is about; nil without an error for a
// rollback that names none, when the flags name none either and the deployment target
// has records of its own: a person may have deployed the one before.
func (f *Fetcher) findArtifact(ctx context.Context, m *staging.Manifest) (*taskdb.Artifact, error) {
	id := m.Release.ArtifactID
	switch {
	case !m.Kind.Known():
		return nil, reject("task type %q is not known: this agent carries out %q and %q", string(m.Kind), task.KindDeploy, task.KindRollback)
	case m.Unnamed || id == "" && m.Kind == task.KindRollback:
		m.Unnamed = true
		a, err := f.db.RollbackTarget(ctx, f.Target.Chart())
		switch {
		case !errors.Is(err, taskdb.ErrNotFound):
			return a, err
		case platform.Of(f.Target.Deployment).KeepsBundles:
			return nil, f.noTarget(ctx)
		}
		return nil, nil
	case id == "":
		return nil, reject("the task names no release artifact")
	}
	a, err := f.db.Artifact(ctx, id)
	if errors.Is(err, taskdb.ErrNotFound) {
		return nil, reject("release artifact %s does not exist", id)
	}
	return a, err
}

// noTarget returns why a rollback that names no release has none to go back to.
func (f *Fetcher) noTarget(ctx context.Context) error {
	chart := f.Target.Chart()
	left, err := f.db.Previous(ctx, chart)
	if errors.Is(err, taskdb.ErrNotFound) {
		return reject("there is no release to roll back to: no %s artifact is flagged is_previous, and the task names none", chart)
	}
	if err != nil {
		return err
	}
	return reject("there is no release to roll back to: the previous one, %s, is what the last rollback left behind; name it to bring it back (wrktalk-agent rollback %s)", left.Version, left.Version)
}

// unpack streams an artifact out of the database into the directory name and
// lists what it holds.
func (f *Fetcher) unpack(ctx context.Context, root *os.Root, name string, a *taskdb.Artifact) ([]staging.File, error) {
	if len(a.SHA256) != sha256.Size*2 {
		return nil, reject("release artifact %s (%s) has no usable sha256: its row says %q", a.Version, a.ID, a.SHA256)
	}
	if err := durable.Mkdir(root, name, 0o700); err != nil {
		return nil, hostError(err)
	}
	sub, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	r := f.db.Read(ctx, a.ID, a.Size)
	defer r.Close()
	sum, err := unpack.Extract(ctx, sub, r, a.Size, f.Limits)
	// The digest comes first: bytes that are not what was uploaded explain
	// everything else that is wrong with them.
	if sum.SHA256 != "" && sum.SHA256 != a.SHA256 {
		return nil, reject("release artifact %s (%s) does not match its sha256: its bytes have %s, its row says %s; upload it again", a.Version, a.ID, sum.SHA256, a.SHA256)
	}
	var bad *unpack.Refusal
	var source *unpack.SourceError
	switch {
	case errors.As(err, &bad):
		return nil, reject("release artifact %s (%s) was refused: %s", a.Version, a.ID, bad)
	case errors.Is(err, taskdb.ErrArtifactGone):
		return nil, reject("release artifact %s (%s) vanished or changed while it was read", a.Version, a.ID)
	case errors.As(err, &source), ctx.Err() != nil:
		return nil, err
	case err != nil:
		return nil, hostError(err)
	}
	files := make([]staging.File, 0, len(sum.Files)+1)
	for _, e := range append([]unpack.File{*sum.Root}, sum.Files...) {
		file := staging.File{
			Path: path.Join(name, e.Path), Type: staging.FileType(e.Type), Size: e.Size, Mode: e.Mode.Perm(), SHA256: e.SHA256, Target: e.Target,
		}
		if e.UID != os.Geteuid() || e.GID != os.Getegid() {
			file.Owner = &staging.FileOwner{UID: e.UID, GID: e.GID}
		}
		files = append(files, file)
	}
	return files, nil
}

// hostError is the rejection that an error of this host, such as a full disk,
// comes to.
func hostError(err error) error {
	return reject("staging failed on this host: %v", err)
}

// checkTexts rejects texts that nothing could deploy and taskdb did not read.
func checkTexts(a *taskdb.Artifact) error {
	const tooLarge = "release artifact %s (%s) was refused: its %s holds %d bytes, and at most %d can be deployed"
	switch {
	case a.EnvSize > taskdb.MaxEnv:
		return reject(tooLarge, a.Version, a.ID, "env_data", a.EnvSize, taskdb.MaxEnv)
	case a.ValuesSize > taskdb.MaxValues:
		return reject(tooLarge, a.Version, a.ID, "values_data", a.ValuesSize, taskdb.MaxValues)
	}
	return nil
}

// writeTexts writes the row's env and values as files below under and lists them
// in m.
func writeTexts(root *os.Root, under string, a *taskdb.Artifact, m *staging.Manifest) error {
	for _, t := range []struct {
		name string
		text *string
	}{{staging.EnvFile, a.Env}, {staging.ValuesFile, a.Values}} {
		if t.text == nil || strings.TrimSpace(*t.text) == "" {
			continue
		}
		name := path.Join(under, t.name)
		if err := durable.WriteFile(root, name, []byte(*t.text), 0o600); err != nil {
			return hostError(err)
		}
		sum := sha256.Sum256([]byte(*t.text))
		m.Files = append(m.Files, staging.File{
			Path: name, Type: staging.TypeFile, Size: int64(len(*t.text)), Mode: 0o600, SHA256: hex.EncodeToString(sum[:]),
		})
	}
	return nil
}

// stagePrevious stages what is needed to restore the release that serves now: its
// env and values, and its payload unless the deployment target still has it. A
// release that cannot be staged again is no reason to reject the new one.
func (f *Fetcher) stagePrevious(ctx context.Context, d *staging.Draft, m *staging.Manifest) error {
	a, err := f.db.Current(ctx, f.Target.Chart())
	if errors.Is(err, taskdb.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	rel := releaseOf(a)
	m.Previous = &rel
	if f.Kept == nil || a.ID == m.Release.ArtifactID {
		return nil
	}
	if no := checkTexts(a); no != nil {
		// Brought back without its env it would be another release.
		f.Log.Warn("the release that serves now could not be restored if this one fails", "task", d.Task().Name, "release", a.Version, "reason", no)
		m.Previous = nil
		return nil
	}
	if err := durable.Mkdir(d.Root(), staging.RestoreDir, 0o700); err != nil {
		return hostError(err)
	}
	m.Files = append(m.Files, staging.File{Path: staging.RestoreDir, Type: staging.TypeDir, Mode: 0o700})
	if err := writeTexts(d.Root(), staging.RestoreDir, a, m); err != nil {
		return err
	}
	if f.Kept(a.Version, a.SHA256) {
		return nil
	}
	files, err := f.unpack(ctx, d.Root(), path.Join(staging.RestoreDir, staging.PayloadDir), a)
	var no rejection
	switch {
	case errors.As(err, &no):
		f.Log.Warn("the release that serves now could not be restored if this one fails", "task", d.Task().Name, "release", a.Version, "reason", no)
		return d.RemoveStaged(path.Join(staging.RestoreDir, staging.PayloadDir))
	case err != nil:
		return err
	}
	m.Files = append(m.Files, files...)
	m.PreviousStaged = true
	return nil
}
