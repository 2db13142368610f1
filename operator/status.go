package operator

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// Status is what an agent's target, its host and its tasks look like now.
type Status struct {
	DeploymentType task.DeploymentType `json:"deployment_type"`
	Current        *Release            `json:"current"`
	Previous       *Release            `json:"previous"`
	Maintenance    bool                `json:"maintenance_mode_enabled"`
	LastPoll       *time.Time          `json:"last_agent_poll"`
	Pending        int                 `json:"pending"`
	NextDueSeconds *float64            `json:"next_due_seconds"`
	// Queue is the first ten pending tasks, in the order in which they are
	// taken. OtherPending counts those that wait for agents of another
	// deployment type, OtherDue those of them that are due.
	Queue        []QueuedTask     `json:"queue"`
	OtherPending int              `json:"other_pending"`
	OtherDue     int              `json:"other_due"`
	InProgress   []InProgressTask `json:"in_progress"`
	Recent       []taskdb.TaskRow `json:"recent"`
	// Components is what the supervisor on this host says; nil when none
	// answers. Running is which components hold this configuration's staging
	// directory, and Staging counts the directories per state; both nil when it
	// cannot be read.
	Components json.RawMessage       `json:"components"`
	Running    map[staging.Role]bool `json:"running"`
	Staging    map[staging.State]int `json:"staging"`
	// Unrecorded are the tasks of this host whose outcomes the database refuses.
	Unrecorded []Unrecorded `json:"unrecorded,omitempty"`
	// Mail is what lies here to be sent; nil when nothing does.
	Mail *MailStatus `json:"mail"`

	NextDue     *time.Duration `json:"-"` // NextDueSeconds as a duration
	LastPollAge time.Duration  `json:"-"` // by the database's clock
	// Silent is true when no agent asks for tasks as often as it should.
	Silent bool `json:"-"`
}

// MailStatus is about mails that are still to be sent.
type MailStatus struct {
	Pending   int        `json:"pending"`
	LastError string     `json:"last_error,omitempty"` // of the newest attempt that failed
	NextTry   *time.Time `json:"next_try,omitempty"`   // the earliest
	attempted time.Time  // when LastError came
}

// Release is a release that serves or served.
type Release struct {
	ArtifactID string     `json:"artifact_id"`
	Version    string     `json:"release_version"`
	AppliedAt  *time.Time `json:"applied_at"`
}

// QueuedTask is a task that waits, and why it does.
type QueuedTask struct {
	taskdb.TaskRow
	Why string `json:"why"`
}

// InProgressTask is a task in progress, with its phase if it is on this host or
// the agent's own schema has it.
type InProgressTask struct {
	taskdb.TaskRow
	Phase *task.Event `json:"phase,omitempty"`
}

// Status collects what the database, the supervisor and the staging directory
// say. Only the database must answer.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	s, err := c.DB.Status(ctx, c.Target)
	if err != nil {
		return nil, err
	}
	r := &Status{
		DeploymentType: c.Target.Deployment, Current: releaseOf(s.Current), Previous: releaseOf(s.Previous),
		Maintenance: s.Maintenance, LastPoll: s.LastPoll, Pending: s.Pending, Recent: s.Recent,
		Queue: []QueuedTask{}, OtherPending: s.OtherPending, OtherDue: s.OtherDue, InProgress: []InProgressTask{},
		NextDue: s.NextDue, LastPollAge: s.LastPollAge, Silent: c.silent(s),
	}
	if s.NextDue != nil {
		due := s.NextDue.Seconds()
		r.NextDueSeconds = &due
	}
	for _, t := range s.Queue {
		r.Queue = append(r.Queue, QueuedTask{t, c.whyWaiting(t, s)})
	}
	for _, t := range s.InProgress {
		phase, err := c.lastEvent(ctx, t.ID)
		if err != nil {
			return nil, err
		}
		r.InProgress = append(r.InProgress, InProgressTask{t, phase})
	}
	r.Components = c.componentHealth(ctx)
	c.readStaging(r)
	return r, nil
}

// lastEvent returns what was last said about a task, by this host's staging
// directory or else by the agent's own schema; nil when neither has it.
func (c *Client) lastEvent(ctx context.Context, id task.ID) (*task.Event, error) {
	if events, err := c.localEvents(id); err == nil && len(events) > 0 {
		return &events[len(events)-1], nil
	}
	e, err := c.DB.LastEvent(ctx, id)
	if err != nil || e == nil {
		return nil, err
	}
	return &e.Event, nil
}

func releaseOf(a *taskdb.Artifact) *Release {
	if a == nil {
		return nil
	}
	return &Release{a.ID, a.Version, a.AppliedAt}
}

// loopbackClient asks for pages of this host, which no proxy has.
var loopbackClient = &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}

// componentHealth asks the supervisor on this host how its components are;
// nil when none answers. One of another configuration is none of ours.
func (c *Client) componentHealth(ctx context.Context) json.RawMessage {
	if c.Listen == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Listen+"/readyz", nil)
	if err != nil {
		return nil
	}
	req.Header.Set("Accept", "application/json")
	res, err := loopbackClient.Do(req)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	var body struct {
		Staging    string          `json:"staging"`
		Components json.RawMessage `json:"components"`
	}
	if json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&body) != nil || body.Staging != c.StagingDir {
		return nil
	}
	return body.Components
}

// readStaging finds out which components run on the staging directory, counts
// what lies in it, and what mail waits there.
func (c *Client) readStaging(r *Status) {
	running := make(map[staging.Role]bool)
	dir, err := staging.Open(c.StagingDir, staging.Reader)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) { // no agent has been here
			r.Running = running
		}
		return
	}
	defer dir.Close()
	for _, l := range componentLocks {
		if running[l.Name], err = dir.Locked(l.Name); err != nil {
			return
		}
	}
	counts := make(map[staging.State]int)
	for _, s := range staging.States {
		tasks, err := dir.List(s)
		if err != nil {
			return
		}
		counts[s] = len(tasks)
		if s == staging.Running {
			r.Unrecorded = unrecordedOf(tasks)
		}
		if s == staging.Done {
			r.Mail = c.mailStatus(tasks)
		}
	}
	r.Running, r.Staging = running, counts
}

// mailStatus sums up what is still to be sent about finished tasks.
func (c *Client) mailStatus(tasks []*staging.Task) *MailStatus {
	m := &MailStatus{}
	for _, t := range tasks {
		mail, err := c.ReadMail(t)
		if err != nil {
			continue // not planned yet, or dealt with meanwhile
		}
		for _, d := range mail.pending() {
			m.Pending++
			if m.NextTry == nil || d.NextTry.Before(*m.NextTry) {
				m.NextTry = &d.NextTry
			}
			if d.LastError != "" && !d.UpdatedAt.Before(m.attempted) {
				m.LastError, m.attempted = d.LastError, d.UpdatedAt
			}
		}
	}
	if m.Pending == 0 {
		return nil
	}
	return m
}
