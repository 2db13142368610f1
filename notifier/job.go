package notifier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/mail"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/meter"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// job is one task whose outcome is to be told.
type job struct {
	task     *staging.Task
	log      *slog.Logger
	outcome  task.Outcome    // once the job was planned
	ledger   *Ledger         // nil until it is known who is told
	due      time.Time       // of planning, and of shredding after a failure
	failures int             // in a row, of planning or shredding
	problem  error           // of the last planning; nil once it succeeded
	settled  bool            // nobody is left to tell
	under    int             // pieces of work under way
	sending  map[string]bool // addresses that a mail is under way to
}

// plan finds out who is told about a task, unless a record already says so.
func (n *Notifier) plan(ctx context.Context, j *job) {
	if !n.load(j) {
		return
	}
	ledger, err := loadLedger(j.task, j.log)
	if err != nil {
		n.postpone(j, err)
		return
	}
	if ledger != nil {
		n.adopt(j, ledger)
		return
	}
	j.under++
	n.start(func() func() {
		ledger, err := n.recipients(ctx, j.outcome, j.log)
		return func() {
			j.under--
			switch {
			case err != nil && ctx.Err() != nil: // told to stop; the next run plans anew
			case err != nil:
				n.postpone(j, err)
			default:
				n.keep(j, ledger)
			}
		}
	})
}

// recipients returns a new record of whom to tell. A record without deliveries
// has a note that says why.
func (n *Notifier) recipients(ctx context.Context, o task.Outcome, log *slog.Logger) (*Ledger, error) {
	s, err := n.settings(ctx)
	if err != nil {
		return nil, err
	}
	if !s.Configured() {
		return &Ledger{Schema: ledgerSchema, CreatedAt: n.now(), Note: noteUnconfigured, Deliveries: []Delivery{}}, nil
	}
	admins, err := n.admins(ctx)
	if err != nil {
		return nil, err
	}
	from, err := s.sender()
	if err != nil {
		from = &mail.Address{} // each send says so; the Message-ID needs no sender
	}
	l := newLedger(o, admins, from, n.now(), log)
	if len(l.Deliveries) == 0 {
		l.Note = noteNobody
	}
	return l, nil
}

const (
	noteUnconfigured = "no mail server is configured in deployment_config"
	noteNobody       = "there is no active administrator"
)

// keep writes a new record down before anything is sent.
func (n *Notifier) keep(j *job, l *Ledger) {
	if err := l.write(j.task); err != nil {
		n.postpone(j, err)
		return
	}
	n.adopt(j, l)
	switch l.Note {
	case noteUnconfigured:
		n.sayUnconfigured()
	case noteNobody:
		if !n.saidNobody {
			n.log.Info("no mail is sent: table admin has no active administrator")
		}
		n.saidNobody = true
	default: // worth saying again when it ends again
		n.saidUnconfigured, n.saidNobody = false, false
	}
}

func (n *Notifier) sayUnconfigured() {
	if !n.saidUnconfigured {
		n.log.Info("no mail is sent: set smtp_host in deployment_config to get it")
	}
	n.saidUnconfigured = true
}

// adopt makes l the job's record.
func (n *Notifier) adopt(j *job, l *Ledger) {
	j.ledger, j.sending, j.failures, j.problem, j.due = l, map[string]bool{}, 0, nil, n.now()
	n.tell()
	latest := n.now().Add(backoffMax * 6 / 5)
	for i := range l.Deliveries {
		if d := &l.Deliveries[i]; d.NextTry.After(latest) { // the clock was set back
			d.NextTry = n.now()
		}
	}
	for _, d := range l.Deliveries {
		n.outbox(j, d)
	}
	if j.settled = l.Settled(); j.settled && n.opts.Settled != nil {
		n.opts.Settled()
	}
}

// outbox tells what became of a mail so far, for those who look elsewhere than
// here: nothing comes back from there.
func (n *Notifier) outbox(j *job, d Delivery) {
	if n.opts.Outbox != nil {
		n.opts.Outbox(j.outcome.TaskID, d)
	}
}

// postpone tries a job's planning again later.
func (n *Notifier) postpone(j *job, err error) {
	j.failures++
	j.problem = err
	n.tell()
	limit := backoffMax
	if isBookError(err) {
		limit = bookBackoffMax
	}
	wait := n.backoff(j.failures, limit)
	j.due = n.now().Add(wait)
	j.log.Warn("cannot prepare mail yet", "error", err, "retry_in", wait.Round(time.Second).String())
}

// tell reports whether mail can be prepared: not while some task's could not be
// twice in a row.
func (n *Notifier) tell() {
	if n.opts.Ready == nil {
		return
	}
	reason, first := "", ""
	for name, j := range n.jobs {
		if j.problem != nil && j.failures > 1 && (first == "" || name < first) {
			reason, first = "prepare mail: "+j.problem.Error(), name
		}
	}
	n.opts.Ready(reason)
}

// load reads the job's outcome. A directory that has none that can be read is
// set aside; when it merely cannot be read now, the job is postponed.
func (n *Notifier) load(j *job) bool {
	o, err := j.task.Outcome()
	if err == nil {
		o.LogTail = o.LogTail[max(0, len(o.LogTail)-maxLogLines):]
		j.outcome = o
		if n.opts.Timeline != nil {
			j.task.Mirror(n.opts.Timeline(o.TaskID, o.Token))
		}
		return true
	}
	if root, rerr := j.task.Root(); rerr == nil {
		_ = root.Close()
	} else if errors.Is(rerr, fs.ErrNotExist) { // the directory went away meanwhile
		n.forget(j)
		return false
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist) {
		n.postpone(j, err)
		return false
	}
	if qerr := j.task.Quarantine("the notifier cannot read the outcome: " + err.Error()); qerr != nil {
		err = errors.Join(err, qerr)
		if j.task.State != staging.Quarantine { // else only an older one could not make room
			n.postpone(j, err)
			return false
		}
	}
	j.log.Error("set a task aside whose outcome cannot be read: no mail is sent about it", "error", err, "quarantine", j.task.Path())
	n.forget(j)
	return false
}

func (n *Notifier) forget(j *job) {
	delete(n.jobs, j.task.Name)
	n.tell()
}

// attempt sends one mail.
func (n *Notifier) attempt(ctx context.Context, j *job, d *Delivery) {
	letter := letter{
		To:        &mail.Address{Name: d.Name, Address: d.Address},
		MessageID: d.MessageID, Date: j.ledger.CreatedAt,
	}
	j.under++
	j.sending[d.Address] = true
	n.start(func() func() {
		retry, err := n.send(ctx, j.outcome, letter)
		return func() {
			j.under--
			delete(j.sending, d.Address)
			switch {
			case err == nil:
				n.sent(j, d)
			case ctx.Err() != nil: // told to stop; the next run tries again
			case errors.Is(err, ErrNotConfigured):
				n.drop(j, d)
			case !retry:
				n.fail(j, d, err)
			default:
				n.retry(j, d, err)
			}
		}
	})
}

// send reads the settings as they are now and delivers l about o.
func (n *Notifier) send(ctx context.Context, o task.Outcome, l letter) (retry bool, err error) {
	s, err := n.settings(ctx)
	if err != nil {
		return true, err
	}
	if l.Content, err = Render(o, n.opts.Origin); err != nil {
		return false, err
	}
	return send(ctx, s, n.opts.Transport, l)
}

func (n *Notifier) sent(j *job, d *Delivery) {
	d.State, d.Attempts, d.NextTry, d.LastError = StateSent, d.Attempts+1, time.Time{}, ""
	n.opts.Meter.Mail(meter.MailSent)
	j.log.Info("mail sent", "recipient", d.Address, "message_id", d.MessageID, "attempts", d.Attempts)
	n.record(j, d, "mail to "+d.Address+" sent")
}

func (n *Notifier) fail(j *job, d *Delivery, err error) {
	d.State, d.NextTry, d.LastError = StateFailed, time.Time{}, task.SafeText(err.Error(), task.MaxMessage)
	n.opts.Meter.Mail(meter.MailFailed)
	j.log.Error("mail not sent", "recipient", d.Address, "error", err)
	n.record(j, d, "mail to "+d.Address+" not sent: "+d.LastError)
}

// drop settles a mail that nobody wants any more: mail was switched off since.
func (n *Notifier) drop(j *job, d *Delivery) {
	d.State, d.NextTry, d.LastError = StateFailed, time.Time{}, noteUnconfigured
	n.sayUnconfigured()
	n.record(j, d, "mail to "+d.Address+" not sent: "+d.LastError)
}

// retry has a mail tried again later, unless it is too old by now: after a long
// downtime it has been tried once more. That the database is away tells nothing
// about the mail.
func (n *Notifier) retry(j *job, d *Delivery, err error) {
	limit := backoffMax
	d.Attempts++
	switch {
	case isBookError(err):
		limit = bookBackoffMax
	case n.now().Sub(j.ledger.CreatedAt) > n.opts.MaxAge:
		n.fail(j, d, fmt.Errorf("gave up after %s and %d attempts: %w", n.opts.MaxAge, d.Attempts, err))
		return
	}
	n.opts.Meter.Mail(meter.MailDeferred)
	wait := n.backoff(d.Attempts, limit)
	d.NextTry, d.LastError = n.now().Add(wait), task.SafeText(err.Error(), task.MaxMessage)
	j.log.Warn("mail not sent yet", "recipient", d.Address, "error", err,
		"attempts", d.Attempts, "retry_in", wait.Round(time.Second).String())
	n.record(j, d, "mail to "+d.Address+" not sent yet: "+d.LastError)
}

// record writes a result down. When that fails the result still stands in
// memory: only a crash now would repeat a mail.
func (n *Notifier) record(j *job, d *Delivery, event string) {
	d.UpdatedAt = n.now()
	n.outbox(j, *d)
	err := fault.Point("notifier.deliver.record:" + j.task.Name)
	if err == nil {
		err = j.ledger.write(j.task)
	}
	err = errors.Join(err, j.task.Append(task.Event{
		Time: n.now(), Component: "notifier", Phase: task.PhaseNotifying, Text: event,
	}))
	if err != nil {
		j.log.Error("cannot record a delivery: a crash now would repeat the mail", "recipient", d.Address, "error", err)
	}
	if j.settled = j.ledger.Settled(); j.settled {
		n.opts.Meter.PhaseEnded(task.PhaseNotifying, max(0, n.now().Sub(j.ledger.CreatedAt)))
		if n.opts.Settled != nil {
			n.opts.Settled()
		}
	}
}
