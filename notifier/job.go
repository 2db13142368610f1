package notifier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
)

// job is one task whose outcome is to be told.
type job struct {
	task       *staging.Task
	log        *slog.Logger
	outcome    task.Outcome       // once the job was planned
	deliveries *Deliveries        // nil until it is known who is told
	due        time.Time          // of planning, and of shredding after a failure
	failures   int                // in a row, of planning or shredding
	problem    error              // of the last planning; nil once it succeeded
	done       bool               // nobody is left to tell
	kept       bool               // given to the history
	inFlight   int                // goroutines that work for it
	sending    map[*Delivery]bool // what is in flight of its deliveries
}

// plan finds out who is told about a task, unless a record already says so.
func (n *Notifier) plan(ctx context.Context, j *job) {
	if !n.readOutcome(j) {
		return
	}
	deliveries, err := loadDeliveries(j.task, j.log)
	if err != nil {
		n.planLater(j, err, backoffMax)
		return
	}
	if deliveries != nil {
		n.load(j, deliveries)
		return
	}
	j.inFlight++
	n.start(func() func() {
		deliveries, idle, err := n.deliveries(ctx, j.outcome, j.log)
		return func() {
			j.inFlight--
			switch {
			case err != nil && ctx.Err() != nil: // told to stop; the next run plans anew
			case err != nil:
				n.planLater(j, err, openBackoffMax)
			default:
				n.save(j, deliveries, idle)
			}
		}
	})
}

// deliveries returns a new record of whom to tell, and of each channel that
// tells nobody the reason. A record without deliveries has a note of it.
func (n *Notifier) deliveries(ctx context.Context, o task.Outcome, log *slog.Logger) (*Deliveries, map[string]*NothingToSend, error) {
	l := &Deliveries{Schema: deliveriesSchema, CreatedAt: n.now(), List: []Delivery{}}
	idle := map[string]*NothingToSend{}
	var notes []string
	for _, c := range n.opts.Channels {
		var recipients []Recipient
		channel, err := open(ctx, c)
		if err == nil {
			recipients, err = recipientsOf(ctx, channel)
		}
		if nothing := new(NothingToSend); errors.As(err, &nothing) {
			idle[c.Name], notes = nothing, append(notes, nothing.Note)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		l.add(c.Name, o, recipients, log)
	}
	if len(l.List) == 0 {
		l.Note = strings.Join(notes, "; ")
	}
	return l, idle, nil
}

func open(ctx context.Context, c Registration) (Channel, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return c.Open(ctx)
}

func recipientsOf(ctx context.Context, c Channel) ([]Recipient, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return c.Recipients(ctx)
}

// registration returns the channel a delivery goes through, or an error when
// this agent has none of that name.
func (n *Notifier) registration(name string) (Registration, error) {
	for _, c := range n.opts.Channels {
		if c.Name == name {
			return c, nil
		}
	}
	return Registration{Noun: "message"}, &NothingToSend{
		Note: fmt.Sprintf("this agent has no channel %q", name),
		Log:  fmt.Sprintf("messages are dropped: this agent has no channel %q", name),
	}
}

// save writes a new record down before anything is sent.
func (n *Notifier) save(j *job, l *Deliveries, idle map[string]*NothingToSend) {
	if err := l.write(j.task); err != nil {
		n.planLater(j, err, backoffMax)
		return
	}
	n.load(j, l)
	for _, c := range n.opts.Channels {
		if why := idle[c.Name]; why != nil {
			n.logIdle(c.Name, why)
		} else { // worth saying again when it ends again
			delete(n.idleLogged, c.Name)
		}
	}
}

// logIdle logs why nothing is sent through a channel, once until that changes.
func (n *Notifier) logIdle(channel string, why *NothingToSend) {
	if n.idleLogged[channel] != why.Log {
		n.log.Info(why.Log)
	}
	n.idleLogged[channel] = why.Log
}

// load makes l the job's record.
func (n *Notifier) load(j *job, l *Deliveries) {
	j.deliveries, j.sending, j.failures, j.problem, j.due = l, map[*Delivery]bool{}, 0, nil, n.now()
	n.reportReady()
	latest := n.now().Add(backoffMax * 6 / 5)
	for i := range l.List {
		if d := &l.List[i]; d.NextTry.After(latest) { // the clock was set back
			d.NextTry = n.now()
		}
	}
	for _, d := range l.List {
		n.report(j, d)
	}
	if j.done = l.Done(); j.done && n.opts.OnDone != nil {
		n.opts.OnDone()
	}
}

// report tells what became of a message so far, for those who look elsewhere
// than here: nothing comes back from there.
func (n *Notifier) report(j *job, d Delivery) {
	if n.opts.OnDelivery != nil {
		n.opts.OnDelivery(j.outcome.TaskID, d)
	}
}

// planLater tries a job's planning again, after limit at the latest.
func (n *Notifier) planLater(j *job, err error, limit time.Duration) {
	j.failures++
	j.problem = err
	n.reportReady()
	wait := n.backoff(j.failures, limit)
	j.due = n.now().Add(wait)
	j.log.Warn("cannot prepare mail yet", "error", err, "retry_in", wait.Round(time.Second).String())
}

// reportReady reports whether messages can be prepared: they cannot while preparing
// those of some task has failed twice in a row or more.
func (n *Notifier) reportReady() {
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

// readOutcome reads the job's outcome. A directory that has none that can be
// read is put in quarantine; when it merely cannot be read now, planning is tried
// again later.
func (n *Notifier) readOutcome(j *job) bool {
	o, err := j.task.Outcome()
	if err == nil {
		o.LogTail = o.LogTail[max(0, len(o.LogTail)-maxLogLines):]
		j.outcome = o
		if n.opts.Timeline != nil {
			j.task.OnEvent(n.opts.Timeline(o.TaskID, o.Token))
		}
		return true
	}
	if root, rerr := j.task.Root(); rerr == nil {
		_ = root.Close()
	} else if errors.Is(rerr, fs.ErrNotExist) { // the directory went away meanwhile
		n.remove(j)
		return false
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist) {
		n.planLater(j, err, backoffMax)
		return false
	}
	if qerr := j.task.Quarantine("the notifier cannot read the outcome: " + err.Error()); qerr != nil {
		err = errors.Join(err, qerr)
		if j.task.State != staging.Quarantine { // else only an older one could not make room
			n.planLater(j, err, backoffMax)
			return false
		}
	}
	j.log.Error("set a task aside whose outcome cannot be read: no mail is sent about it", "error", err, "quarantine", j.task.Path())
	n.remove(j)
	return false
}

func (n *Notifier) remove(j *job) {
	delete(n.jobs, j.task.Name)
	n.reportReady()
}

// attempt sends one message.
func (n *Notifier) attempt(ctx context.Context, j *job, d *Delivery) {
	recipient := Recipient{Name: d.Name, Address: d.Address}
	m := Message{Recipient: recipient, ID: d.MessageID, Date: j.deliveries.CreatedAt}
	channel := d.Channel
	j.inFlight++
	j.sending[d] = true
	n.start(func() func() {
		opened, retry, err := n.send(ctx, channel, j.outcome, m)
		return func() {
			j.inFlight--
			delete(j.sending, d)
			nothing := new(NothingToSend)
			switch {
			case err == nil:
				n.sent(j, d)
			case ctx.Err() != nil: // told to stop; the next run tries again
			case errors.As(err, &nothing):
				n.cancel(j, d, nothing)
			case !opened:
				n.retryLater(j, d, err, openBackoffMax)
			case !retry:
				n.fail(j, d, err)
			case n.now().Sub(j.deliveries.CreatedAt) > n.opts.MaxAge:
				// After a long downtime it has been tried once more.
				d.Attempts++
				n.fail(j, d, fmt.Errorf("gave up after %s and %d attempts: %w", n.opts.MaxAge, d.Attempts, err))
			default:
				n.retryLater(j, d, err, backoffMax)
			}
		}
	})
}

// send opens the channel with its settings as they are now, and sends m about o.
// A channel that was not opened tells nothing about the message.
func (n *Notifier) send(ctx context.Context, channel string, o task.Outcome, m Message) (opened, retry bool, err error) {
	r, err := n.registration(channel)
	if err != nil {
		return false, true, err
	}
	c, err := open(ctx, r)
	if err != nil {
		return false, true, err
	}
	if m.Content, err = Render(o, n.opts.Origin); err != nil {
		return true, false, err
	}
	retry, err = c.Send(ctx, m)
	return true, retry, err
}

func (n *Notifier) sent(j *job, d *Delivery) {
	d.State, d.Attempts, d.NextTry, d.LastError = StateSent, d.Attempts+1, time.Time{}, ""
	n.opts.Metrics.Mail(telemetry.MailSent)
	j.log.Info(n.noun(d)+" sent", "recipient", d.Address, "message_id", d.MessageID, "attempts", d.Attempts)
	n.record(j, d, "sent")
}

func (n *Notifier) fail(j *job, d *Delivery, err error) {
	d.State, d.NextTry, d.LastError = StateFailed, time.Time{}, task.SafeText(err.Error(), task.MaxMessage)
	n.opts.Metrics.Mail(telemetry.MailFailed)
	j.log.Error(n.noun(d)+" not sent", "recipient", d.Address, "error", err)
	n.record(j, d, "not sent: "+d.LastError)
}

// cancel gives up a message that nobody wants any more: its channel was switched
// off since.
func (n *Notifier) cancel(j *job, d *Delivery, why *NothingToSend) {
	d.State, d.NextTry, d.LastError = StateFailed, time.Time{}, why.Note
	n.logIdle(d.Channel, why)
	n.record(j, d, "not sent: "+d.LastError)
}

// retryLater has a message tried again, after limit at the latest.
func (n *Notifier) retryLater(j *job, d *Delivery, err error, limit time.Duration) {
	d.Attempts++
	n.opts.Metrics.Mail(telemetry.MailDeferred)
	wait := n.backoff(d.Attempts, limit)
	d.NextTry, d.LastError = n.now().Add(wait), task.SafeText(err.Error(), task.MaxMessage)
	j.log.Warn(n.noun(d)+" not sent yet", "recipient", d.Address, "error", err,
		"attempts", d.Attempts, "retry_in", wait.Round(time.Second).String())
	n.record(j, d, "not sent yet: "+d.LastError)
}

// noun returns what people call a message of d's channel.
func (n *Notifier) noun(d *Delivery) string {
	r, _ := n.registration(d.Channel)
	return r.Noun
}

// record writes a result down. When that fails the result still stands in
// memory: only a crash now would repeat a message.
func (n *Notifier) record(j *job, d *Delivery, result string) {
	d.UpdatedAt = n.now()
	n.report(j, *d)
	err := fault.Point("notifier.deliver.record:" + j.task.Name)
	if err == nil {
		err = j.deliveries.write(j.task)
	}
	err = errors.Join(err, j.task.Append(task.Event{
		Time: n.now(), Component: "notifier", Phase: task.PhaseNotifying,
		Text: n.noun(d) + " to " + d.Address + " " + result,
	}))
	if err != nil {
		j.log.Error("cannot record a delivery: a crash now would repeat the mail", "recipient", d.Address, "error", err)
	}
	if j.done = j.deliveries.Done(); j.done {
		n.opts.Metrics.PhaseEnded(task.PhaseNotifying, max(0, n.now().Sub(j.deliveries.CreatedAt)))
		if n.opts.OnDone != nil {
			n.opts.OnDone()
		}
	}
}
