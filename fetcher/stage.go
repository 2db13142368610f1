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
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// refusal is why a task cannot be carried out: a sentence for an administrator.
type refusal string

func (r refusal) Error() string { return string(r) }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

// stage turns a claim into a ready directory, or into a refusal. It tries until
// one of both is published, the claim is lost, or ctx ends; then the draft stays
// where the next fetcher finds it.
func (f *Fetcher) stage(ctx context.Context, d *staging.Draft, claim staging.Manifest) {
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	beat := f.startHeartbeat(ctx, claim, lost)
	defer beat()

	began := time.Now()
	for n := 1; ; n++ {
		err := f.tryStage(ctx, d, claim)
		switch {
		case err == nil:
			f.Meter.PhaseEnded(task.PhaseStaging, time.Since(began))
			return
		case errors.Is(context.Cause(ctx), taskdb.ErrFenced):
			f.Log.Warn("the claim was lost while staging; leaving the task alone", "task", d.Task().Name)
			if err := f.discard(d); err != nil {
				f.Log.Error("a lost draft could not be shredded", "task", d.Task().Name, "error", err)
			}
			return
		case ctx.Err() != nil:
			f.Log.Info("stopping in the middle of staging; the next start takes it up", "task", d.Task().Name)
			f.uncount(d, claim)
			return
		}
		f.Log.Error("staging failed; trying again", "task", d.Task().Name, "error", err)
		f.ready("staging " + d.Task().Name + ": " + err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(f.backoff(n)):
		}
	}
}

// uncount forgets a start that a stop of the agent ended: that says nothing
// about the task.
func (f *Fetcher) uncount(d *staging.Draft, claim staging.Manifest) {
	if d.Task().State != staging.Tmp {
		return
	}
	claim.Starts--
	if err := d.SetClaim(claim); err != nil {
		f.Log.Warn("this start of staging counts, although it was only stopped", "task", d.Task().Name, "error", err)
	}
	_ = d.Close()
}

// startHeartbeat keeps the claim alive while it is staged and cancels the
// staging when it turns out to be lost. The caller calls the returned function.
func (f *Fetcher) startHeartbeat(ctx context.Context, claim staging.Manifest, lost context.CancelCauseFunc) func() {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(f.Heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			err := f.db.Heartbeat(ctx, claim.TaskID, claim.Token)
			switch {
			case err == nil:
				f.Meter.Heartbeat()
			case errors.Is(err, taskdb.ErrFenced):
				lost(err)
				return
			case ctx.Err() == nil:
				f.Log.Warn("heartbeat failed; staging goes on", "task", claim.TaskID, "error", err)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// tryStage makes one attempt. Trouble of this host, such as a full disk, is a
// refusal too, and so is what the database will say again: a task that fails
// clearly beats one that waits for a person to read a log. An error is worth
// another attempt.
func (f *Fetcher) tryStage(ctx context.Context, d *staging.Draft, m staging.Manifest) error {
	if err := d.Clear(); err != nil {
		return err
	}
	// A draft that a predecessor was killed over has what that one found.
	m.Files, m.Previous, m.PreviousStaged, m.Refusal = nil, nil, false, ""
	err := f.fill(ctx, d, &m)
	var no refusal
	if err != nil && !errors.As(err, &no) && ctx.Err() == nil && final(err) {
		no = refusal(fmt.Sprintf("staging failed: %v", err))
		err = no
	}
	if err == nil {
		err = f.publish(d, m)
		if !errors.Is(err, staging.ErrTooLarge) {
			return err
		}
		no = refusal(fmt.Sprintf("release artifact %s cannot be staged: %v", m.Release.ArtifactID, err))
		// What a row says may be what is too large.
		m.Release, m.Previous = staging.Release{ArtifactID: m.Release.ArtifactID}, nil
	}
	if no == "" {
		return err
	}
	m.Refusal = task.SafeText(no.Error(), task.MaxMessage)
	f.event(d, task.PhaseStaging, "refused: "+m.Refusal)
	if err := d.Clear(); err != nil {
		return err
	}
	m.Files, m.PreviousStaged = nil, false
	return f.publish(d, m)
}

func (f *Fetcher) publish(d *staging.Draft, m staging.Manifest) error {
	m.StagedAt = time.Now().UTC()
	text := "staged " + m.Release.Version
	if m.Refusal != "" {
		text = "handed over to be failed"
	}
	f.event(d, task.PhaseReady, text)
	_, err := d.Publish(m)
	return err
}

// final reports whether an error will not go away by waiting. A database that
// does not let the agent in any more could not be told of a refusal either.
func final(err error) bool {
	return !taskdb.Transient(err) && !errors.Is(err, taskdb.ErrAuth) && !errors.Is(err, taskdb.ErrTLS)
}

// fill stages everything the runner needs and lists it in m.
func (f *Fetcher) fill(ctx context.Context, d *staging.Draft, m *staging.Manifest) error {
	if f.MaxAttempts > 0 && m.Starts > f.MaxAttempts {
		return refuse("staging began %d times and was never finished: the agent ended each time, so look for what kills it (memory, a limit) before asking for the task again", m.Starts-1)
	}
	a, err := f.artifact(ctx, m)
	if err != nil {
		return err
	}
	m.Release = releaseOf(a)
	if a.ChartType != f.Target.Deployment.ChartType() {
		return refuse("release artifact %s (%s) has chart type %q, but this agent deploys %q", a.Version, a.ID, a.ChartType, f.Target.Deployment.ChartType())
	}
	// What was taken over may be half applied: it is never too late for that.
	if f.MaxOverdue > 0 && m.Late > f.MaxOverdue && !m.TakenOver {
		return refuse("the task was due at %s and no agent took it until %s later, which is more than agent.max_overdue (%s): ask for it again if it is still wanted",
			m.DueAt.UTC().Format("2006-01-02 15:04:05 MST"), m.Late.Round(time.Second), f.MaxOverdue)
	}
	if err := tooLong(a); err != nil {
		return err
	}
	f.event(d, task.PhaseStaging, fmt.Sprintf("staging %s %s, %d bytes", a.ChartType, a.Version, a.Size))
	files, err := f.unpack(ctx, d.Root(), staging.PayloadDir, a)
	if err != nil {
		return err
	}
	m.Files = files
	if err := f.texts(d.Root(), "", a, m); err != nil {
		return err
	}
	return f.previous(ctx, d, m)
}

func releaseOf(a *taskdb.Artifact) staging.Release {
	return staging.Release{ArtifactID: a.ID, Version: a.Version, ChartType: a.ChartType, SHA256: a.SHA256, Bytes: a.Size}
}

// artifact finds the release the task is about.
func (f *Fetcher) artifact(ctx context.Context, m *staging.Manifest) (*taskdb.Artifact, error) {
	id := m.Release.ArtifactID
	switch {
	case !m.Kind.Known():
		return nil, refuse("task type %q is not known: this agent carries out %q and %q", string(m.Kind), task.KindDeploy, task.KindRollback)
	case id == "" && m.Kind == task.KindRollback:
		a, err := f.db.RollbackTarget(ctx, f.Target.Deployment.ChartType())
		if errors.Is(err, taskdb.ErrNotFound) {
			return nil, f.noTarget(ctx)
		}
		return a, err
	case id == "":
		return nil, refuse("the task names no release artifact")
	}
	a, err := f.db.Artifact(ctx, id)
	if errors.Is(err, taskdb.ErrNotFound) {
		return nil, refuse("release artifact %s does not exist", id)
	}
	return a, err
}

// noTarget says why a rollback that names no release has none to go back to.
func (f *Fetcher) noTarget(ctx context.Context) error {
	chart := f.Target.Deployment.ChartType()
	left, err := f.db.Previous(ctx, chart)
	if errors.Is(err, taskdb.ErrNotFound) {
		return refuse("there is no release to roll back to: no %s artifact is flagged is_previous, and the task names none", chart)
	}
	if err != nil {
		return err
	}
	return refuse("there is no release to roll back to: the previous one, %s, is what the last rollback left behind; name it to bring it back (wrktalk-agent rollback %s)", left.Version, left.Version)
}

// unpack streams an artifact out of the database into the directory name and
// lists what it holds.
func (f *Fetcher) unpack(ctx context.Context, root *os.Root, name string, a *taskdb.Artifact) ([]staging.File, error) {
	if len(a.SHA256) != sha256.Size*2 {
		return nil, refuse("release artifact %s (%s) has no usable sha256: its row says %q", a.Version, a.ID, a.SHA256)
	}
	if err := durable.Mkdir(root, name, 0o700); err != nil {
		return nil, localTrouble(err)
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
		return nil, refuse("release artifact %s (%s) does not match its sha256: its bytes have %s, its row says %s; upload it again", a.Version, a.ID, sum.SHA256, a.SHA256)
	}
	var bad *unpack.Refusal
	var source *unpack.SourceError
	switch {
	case errors.As(err, &bad):
		return nil, refuse("release artifact %s (%s) was refused: %s", a.Version, a.ID, bad)
	case errors.Is(err, taskdb.ErrArtifactGone):
		return nil, refuse("release artifact %s (%s) vanished or changed while it was read", a.Version, a.ID)
	case errors.As(err, &source), ctx.Err() != nil:
		return nil, err
	case err != nil:
		return nil, localTrouble(err)
	}
	files := make([]staging.File, 0, len(sum.Files)+1)
	files = append(files, staging.File{Path: name, Type: staging.TypeDir, Mode: 0o700})
	for _, e := range sum.Files {
		files = append(files, staging.File{
			Path: path.Join(name, e.Path), Type: staging.FileType(e.Type), Size: e.Size, Mode: e.Mode.Perm(), SHA256: e.SHA256, Target: e.Target,
		})
	}
	return files, nil
}

// localTrouble is an error of this host while staging, said as a refusal.
func localTrouble(err error) error {
	return refuse("staging failed on this host: %v", err)
}

// tooLong refuses texts that nothing could deploy and taskdb did not read.
func tooLong(a *taskdb.Artifact) error {
	const words = "release artifact %s (%s) was refused: its %s holds %d bytes, and at most %d can be deployed"
	switch {
	case a.EnvSize > taskdb.MaxEnv:
		return refuse(words, a.Version, a.ID, "env_data", a.EnvSize, taskdb.MaxEnv)
	case a.ValuesSize > taskdb.MaxValues:
		return refuse(words, a.Version, a.ID, "values_data", a.ValuesSize, taskdb.MaxValues)
	}
	return nil
}

// texts writes the row's env and values as files below under and lists them.
func (f *Fetcher) texts(root *os.Root, under string, a *taskdb.Artifact, m *staging.Manifest) error {
	for _, t := range []struct {
		name string
		text *string
	}{{staging.EnvFile, a.Env}, {staging.ValuesFile, a.Values}} {
		if t.text == nil || strings.TrimSpace(*t.text) == "" {
			continue
		}
		name := path.Join(under, t.name)
		if err := durable.WriteFile(root, name, []byte(*t.text), 0o600); err != nil {
			return localTrouble(err)
		}
		sum := sha256.Sum256([]byte(*t.text))
		m.Files = append(m.Files, staging.File{
			Path: name, Type: staging.TypeFile, Size: int64(len(*t.text)), Mode: 0o600, SHA256: hex.EncodeToString(sum[:]),
		})
	}
	return nil
}

// previous stages what is needed to restore the release that serves now: its
// env and values, and its payload unless that is still at hand. A release that
// cannot be staged again is no reason to refuse the new one.
func (f *Fetcher) previous(ctx context.Context, d *staging.Draft, m *staging.Manifest) error {
	a, err := f.db.Current(ctx, f.Target.Deployment.ChartType())
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
	if no := tooLong(a); no != nil {
		// Brought back without its env it would be another release.
		f.Log.Warn("the release that serves now could not be restored if this one fails", "task", d.Task().Name, "release", a.Version, "reason", no)
		m.Previous = nil
		return nil
	}
	if err := durable.Mkdir(d.Root(), staging.RestoreDir, 0o700); err != nil {
		return localTrouble(err)
	}
	m.Files = append(m.Files, staging.File{Path: staging.RestoreDir, Type: staging.TypeDir, Mode: 0o700})
	if err := f.texts(d.Root(), staging.RestoreDir, a, m); err != nil {
		return err
	}
	if f.Kept(a.Version, a.SHA256) {
		return nil
	}
	files, err := f.unpack(ctx, d.Root(), path.Join(staging.RestoreDir, staging.PayloadDir), a)
	var no refusal
	switch {
	case errors.As(err, &no):
		f.Log.Warn("the release that serves now could not be restored if this one fails", "task", d.Task().Name, "release", a.Version, "reason", no)
		return d.Drop(path.Join(staging.RestoreDir, staging.PayloadDir))
	case err != nil:
		return err
	}
	m.Files = append(m.Files, files...)
	m.PreviousStaged = true
	return nil
}
