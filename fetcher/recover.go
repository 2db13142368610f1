package fetcher

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// recoverDrafts deals with the drafts that nobody writes any more: those of a
// predecessor that was killed, those that could not be removed, and those of an
// operator's command that was killed. It is called between two tasks, when this
// fetcher has no draft of its own. It returns an error only if tmp cannot be
// listed.
func (f *Fetcher) recoverDrafts(ctx, work context.Context) error {
	drafts, err := f.dir.Drafts()
	if drafts == nil {
		return err
	}
	if err != nil {
		f.Log.Warn("a draft cannot be looked at", "error", err)
	}
	for _, d := range drafts {
		if ctx.Err() != nil { // the next start has another look
			_ = d.Close()
			continue
		}
		if err := f.recoverDraft(ctx, work, d); err != nil {
			f.Log.Warn("a draft cannot be put away; trying again later", "task", d.Task().Name, "error", err)
		}
	}
	return nil
}

// recoverDraft stages a draft anew whose claim holds, publishes one that needs no
// claim, and shreds any other one.
func (f *Fetcher) recoverDraft(ctx, work context.Context, d *staging.Draft) error {
	if f.undeletable[d.Task().Name] {
		return f.remove(d)
	}
	m, err := d.Manifest()
	var disk syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f.remove(d)
	case errors.As(err, &disk): // which may pass
		return errors.Join(err, d.Close())
	case err != nil:
		f.Log.Warn("discarding a draft that cannot be read", "task", d.Task().Name, "error", err)
		return f.remove(d)
	case m.Offline: // complete: the operator's command was killed before the last step
		_, err := d.Publish(*m)
		if err != nil {
			err = errors.Join(err, d.Close())
		}
		return err
	}
	_, err = f.resumeDraft(ctx, work, d, m)
	return err
}

// remove shreds a draft. One that could not be shredded is remembered, since its
// manifest may be gone; recoverDrafts tries again.
func (f *Fetcher) remove(d *staging.Draft) error {
	err := d.Remove()
	if err != nil {
		f.undeletable[d.Task().Name] = true
	} else {
		delete(f.undeletable, d.Task().Name)
	}
	return err
}

// resumeDraft stages a draft whose claim may or may not have been committed, if
// the database says that it holds, and shreds it otherwise. When ctx ends before
// the database has answered, the draft is left for the next start.
func (f *Fetcher) resumeDraft(ctx, work context.Context, d *staging.Draft, m *staging.Manifest) (held bool, err error) {
	err = f.confirmClaim(ctx, m)
	switch {
	case err == nil:
		m.StageAttempts++
		if err := d.SaveManifest(*m); err != nil {
			f.Log.Warn("this attempt at staging is not counted", "task", d.Task().Name, "error", err)
		}
		f.Log.Info("staging anew what was claimed before", "task", d.Task().Name, "start", m.StageAttempts)
		d.Task().OnEvent(f.Timeline.For(m.TaskID, m.Token))
		f.stage(work, d, *m)
		return true, nil
	case errors.Is(err, taskdb.ErrFenced):
		f.Log.Info("discarding a draft whose claim does not hold", "task", d.Task().Name)
		return false, f.remove(d)
	default:
		return false, d.Close() // ctx has ended
	}
}

// confirmClaim asks the database whether a claim still holds until it gets an
// answer or ctx ends.
func (f *Fetcher) confirmClaim(ctx context.Context, m *staging.Manifest) error {
	return f.retryPolicy().Do(ctx, func() error {
		err := f.db.Heartbeat(ctx, m.TaskID, m.Token)
		if errors.Is(err, taskdb.ErrFenced) {
			return retry.Permanent(err)
		}
		return err
	}, func(err error, _ time.Duration) {
		f.Log.Warn("a claim cannot be confirmed; trying again", "error", err)
		f.ready(err.Error())
	})
}
