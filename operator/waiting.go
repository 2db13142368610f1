package operator

import (
	"fmt"
	"slices"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// whyWaiting explains why a pending task is not running; row.ChartType is whose
// task it is.
func (c *Client) whyWaiting(row taskdb.TaskRow, s *taskdb.Status) string {
	own := platform.Of(c.Target.Deployment)
	switch {
	case slices.ContainsFunc(own.Others(), func(p platform.Platform) bool { return p.Chart == row.ChartType }):
		return fmt.Sprintf("waiting for a %s agent: this agent deploys %s (agent.deployment_type, deployment_config)", row.ChartType, own.Chart)
	case row.DueIn > 0 && row.ExecuteAfter == nil:
		return "waiting for ever: its execute_after is infinity"
	case row.DueIn > 0:
		return fmt.Sprintf("waiting until %s", row.ExecuteAfter.Local().Format("2006-01-02 15:04:05 MST"))
	case len(s.InProgress) > 0:
		return c.whyBlocked(s.InProgress[0])
	case s.LastPoll == nil:
		return "waiting: no agent has ever asked this database for tasks; is wrktalk-agent run running?"
	case c.silent(s):
		return fmt.Sprintf("waiting: no agent has asked for tasks for %s; is wrktalk-agent run running?", s.LastPollAge.Round(time.Second))
	case len(s.Queue) > 0 && s.Queue[0].ID != row.ID:
		return fmt.Sprintf("waiting for task %s, which comes first", s.Queue[0].ID)
	default:
		return "waiting for the agent to pick the task up"
	}
}

// whyBlocked says which task in progress holds others up, and, when its agent
// has not been heard of as it should, until when it may.
func (c *Client) whyBlocked(t taskdb.TaskRow) string {
	text := fmt.Sprintf("waiting for task %s, which is in progress", t.ID)
	if t.HeartbeatAge == nil || *t.HeartbeatAge < 2*c.Heartbeat {
		return text
	}
	age := t.HeartbeatAge.Round(time.Second)
	if left := c.Lease - *t.HeartbeatAge; left > 0 {
		return fmt.Sprintf("%s; its agent has been silent for %s, and its lease ends in %s", text, age, left.Round(time.Second))
	}
	return fmt.Sprintf("%s; its agent has been silent for %s, and its lease has ended: the next agent that asks takes it over", text, age)
}

// silent reports whether no agent asks for tasks as often as it should.
func (c *Client) silent(s *taskdb.Status) bool {
	return s.LastPollAge > 2*c.PollInterval+5*time.Second
}
