package compose

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

const (
	// safetyTick is how often containers are looked at although no event came.
	safetyTick = 5 * time.Second
	// resubscribe is the pause before asking for events again: some proxies of
	// the engine's socket refuse them.
	resubscribe = 500 * time.Millisecond
)

// failure is a service that will not come up.
type failure struct{ containerStatus }

func (f *failure) Error() string { return fmt.Sprintf("service %q %s", f.service, f.reason) }

// watch waits until every service of project is up, or one has failed.
type watch struct {
	engine        *engine
	project       *types.Project
	stableFor     time.Duration
	before        map[string]past   // the containers that were there before, by id
	exits         map[string]int    // exit codes of the last runs that were seen to end, by id of the container
	last          []containerStatus // what the last look saw
	now           func() time.Time
	report        *deploy.Report
	onUnavailable func(error) // told when the engine has to be waited for
}

// past is how a container was before anything was done.
type past struct {
	service   string
	started   string // when, as the engine says it
	unhealthy bool   // it was unhealthy
	sameTask  bool   // the task itself had made it, in an attempt that died
}

// newWatch notes how the project's containers are before anything is done to
// them.
func (b *backend) newWatch(ctx context.Context, p *types.Project) (*watch, error) {
	w := &watch{
		engine: b.engine, project: p, stableFor: b.job.Compose.StableFor, before: map[string]past{}, exits: map[string]int{},
		now: time.Now, report: b.report, onUnavailable: b.onUnavailable(task.PhaseWaiting),
	}
	list, err := w.engine.inspect(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		old := past{service: c.Labels[api.ServiceLabel], sameTask: b.sameTask(c.Summary)}
		if s := c.info.State; s != nil {
			old.started = s.StartedAt
			old.unhealthy = s.Health != nil && s.Health.Status == container.Unhealthy
		}
		w.before[c.ID] = old
	}
	b.watch = w
	return w, nil
}

// beside returns a watch that may look while w waits: of what w changes it has its
// own.
func (w *watch) beside() *watch {
	return &watch{
		engine: w.engine, project: w.project, stableFor: w.stableFor, before: w.before, exits: map[string]int{},
		now: w.now, report: w.report, onUnavailable: w.onUnavailable,
	}
}

// wait returns nil when all services are up, a *failure when one will not be,
// or the cause of ctx's end. Until started is closed only new containers
// count, and only their failure: the others are still being replaced. An engine
// that goes away meanwhile is waited for.
func (w *watch) wait(ctx context.Context, started <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx) // ends the subscription
	defer cancel()
	// First subscribe, then look: nothing can happen unseen in between.
	messages, broken := w.subscribe(ctx)
	begun := false
	for {
		var containers []containerStatus
		err := w.engine.retryUnavailable(ctx, w.onUnavailable, func() (err error) {
			containers, err = w.look(ctx)
			return err
		})
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		w.last = containers
		ready, next := begun, safetyTick
		for _, c := range containers {
			_, old := w.before[c.id]
			switch {
			case c.state == stateFailed && (begun || !old):
				return &failure{c}
			case c.state == statePending:
				ready = false
				if c.retry > 0 {
					next = min(next, c.retry)
				}
			}
		}
		if ready {
			return nil
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-started:
			begun, started = true, nil
		case m := <-messages:
			w.note(m)
			w.drain(messages)
		case <-broken:
			retry.Sleep(ctx, resubscribe)
			err := w.engine.waitReady(ctx, w.onUnavailable)
			if err != nil && ctx.Err() == nil {
				return err
			}
			messages, broken = w.subscribe(ctx)
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// note keeps what a container's last run ended with: while it runs again, the engine
// does not tell.
func (w *watch) note(m events.Message) {
	if code, err := strconv.Atoi(m.Actor.Attributes["exitCode"]); err == nil && m.Action == events.ActionDie {
		w.exits[m.Actor.ID] = code
	}
}

// drain takes what has come meanwhile: one look serves many events.
func (w *watch) drain(messages <-chan events.Message) {
	for {
		select {
		case m := <-messages:
			w.note(m)
		default:
			return
		}
	}
}

func (w *watch) subscribe(ctx context.Context) (<-chan events.Message, <-chan error) {
	args := filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)),
		filters.Arg("label", api.ProjectLabel+"="+w.project.Name),
	)
	// Not exec_*: every health check is one.
	for _, a := range []events.Action{
		events.ActionStart, events.ActionDie, events.ActionOOM, events.ActionDestroy,
		events.ActionPause, events.ActionUnPause, events.ActionHealthStatus,
	} {
		args.Add("event", string(a))
	}
	return w.engine.api.Events(ctx, events.ListOptions{Filters: args})
}

// look returns a status for every container of the project's services, and a
// pending one for each that is missing.
func (w *watch) look(ctx context.Context) ([]containerStatus, error) {
	list, err := w.engine.inspect(ctx, w.project.Name)
	if err != nil {
		return nil, err
	}
	found := map[string]int{}
	var containers []containerStatus
	for _, c := range list {
		service := c.Labels[api.ServiceLabel]
		if _, ok := w.project.Services[service]; !ok {
			continue // an orphan, about to be removed
		}
		info := c.info
		found[service]++
		w.mask(info.State)
		old, before := w.before[c.ID]
		lastExit, seen := w.exits[c.ID]
		if !seen {
			lastExit = unknownExit
		}
		status := assess(info, lastExit, w.stableFor, w.now())
		if status.state == stateFailed && before && !old.sameTask &&
			info.State.Status == container.StateRunning && info.State.StartedAt == old.started {
			// Unhealthy, and nothing was done to it: this is not the work of the
			// release, which may be what it waits for.
			status.state = statePending
		}
		status.service, status.name = service, strings.TrimPrefix(info.Name, "/")
		containers = append(containers, status)
	}
	for _, name := range w.project.ServiceNames() {
		s := w.project.Services[name]
		for range s.GetScale() - found[name] {
			containers = append(containers, containerStatus{service: name, reason: "has no container"})
		}
	}
	slices.SortStableFunc(containers, func(a, b containerStatus) int { return strings.Compare(a.service, b.service) })
	return containers, nil
}

// mask takes secrets out of what the engine quotes, before anybody shortens it.
func (w *watch) mask(s *container.State) {
	if s == nil {
		return
	}
	s.Error = w.report.Masker().String(s.Error)
	if s.Health != nil {
		for _, check := range s.Health.Log {
			if check != nil {
				check.Output = w.report.Masker().String(check.Output)
			}
		}
	}
}

// notReady says in one line which services are not up, for a timeout.
func notReady(containers []containerStatus) string {
	var texts []string
	for _, c := range containers {
		if c.state == statePending || c.state == stateFailed {
			text := fmt.Sprintf("service %q %s", c.service, c.reason)
			if !slices.Contains(texts, text) {
				texts = append(texts, text)
			}
		}
	}
	return strings.Join(texts, ", ")
}
