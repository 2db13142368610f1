package compose

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

const (
	// safetyTick is how often containers are looked at although no event came.
	safetyTick = 5 * time.Second
	// resubscribe is the pause before asking for events again: some proxies of
	// the engine's socket refuse them.
	resubscribe = 500 * time.Millisecond
)

// failure is a service that will not come up.
type failure struct{ verdict }

func (f *failure) Error() string { return fmt.Sprintf("service %q %s", f.service, f.reason) }

// watch waits until every service of p is up, or one has failed.
type watch struct {
	engine *engine
	p      *types.Project
	settle time.Duration
	before map[string]past // the containers that were there before, by id
	now    func() time.Time
	masker *mask.Masker
	away   func(error) // told when the engine has to be waited for
}

// past is how a container was before anything was done.
type past struct {
	service  string
	restarts int
	started  string // when, as the engine says it
	sick     bool   // it was unhealthy
	mine     bool   // the task itself had made it, in an attempt that died
}

// newWatch notes how the project's containers are before anything is done to
// them.
func (r *run) newWatch(ctx context.Context, p *types.Project) (*watch, error) {
	w := &watch{engine: r.engine, p: p, settle: r.job.Compose.Settle, before: map[string]past{}, now: time.Now, masker: r.masker, away: r.away(task.PhaseWaiting)}
	list, err := w.engine.list(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		info, err := w.engine.api.ContainerInspect(ctx, c.ID)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inspect container %s: %w", c.ID[:12], err)
		}
		old := past{service: c.Labels[api.ServiceLabel], restarts: info.RestartCount, mine: c.Labels[LabelTask] == string(r.job.TaskID)}
		if info.State != nil {
			old.started = info.State.StartedAt
			old.sick = info.State.Health != nil && info.State.Health.Status == container.Unhealthy
		}
		w.before[c.ID] = old
	}
	return w, nil
}

// wait returns nil when all services are up, a *failure when one will not be,
// or the cause of ctx's end. Until started is closed only new containers are
// judged, and only for failure: the others are still being replaced. An engine
// that goes away meanwhile is waited for.
func (w *watch) wait(ctx context.Context, started <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx) // ends the subscription
	defer cancel()
	// First subscribe, then look: nothing can happen unseen in between.
	messages, broken := w.subscribe(ctx)
	begun := false
	for {
		var verdicts []verdict
		err := w.engine.persist(ctx, w.away, func() (err error) {
			verdicts, err = w.look(ctx)
			return err
		})
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		ready, wake := begun, safetyTick
		for _, v := range verdicts {
			_, old := w.before[v.id]
			switch {
			case v.standing == failed && (begun || !old):
				return &failure{v}
			case v.standing == pending:
				ready = false
				if v.retry > 0 {
					wake = min(wake, v.retry)
				}
			}
		}
		if ready {
			return nil
		}
		timer := time.NewTimer(wake)
		select {
		case <-ctx.Done():
		case <-started:
			begun, started = true, nil
		case <-messages:
			drain(messages)
		case <-broken:
			rest(ctx, resubscribe)
			err := w.engine.await(ctx, w.away)
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

// drain takes what has come meanwhile: one look serves many events.
func drain(messages <-chan events.Message) {
	for {
		select {
		case <-messages:
		default:
			return
		}
	}
}

func (w *watch) subscribe(ctx context.Context) (<-chan events.Message, <-chan error) {
	args := filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)),
		filters.Arg("label", api.ProjectLabel+"="+w.p.Name),
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

// look returns a verdict for every container of the project's services, and a
// pending one for each that is missing.
func (w *watch) look(ctx context.Context) ([]verdict, error) {
	list, err := w.engine.list(ctx, w.p.Name)
	if err != nil {
		return nil, err
	}
	found := map[string]int{}
	var verdicts []verdict
	for _, c := range list {
		service := c.Labels[api.ServiceLabel]
		if _, ok := w.p.Services[service]; !ok {
			continue // an orphan, about to be removed
		}
		info, err := w.engine.api.ContainerInspect(ctx, c.ID)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inspect container %s: %w", c.ID[:12], err)
		}
		found[service]++
		w.mask(info.State)
		old, before := w.before[c.ID]
		v := judge(info, old.restarts, w.settle, w.now())
		if v.standing == failed && before && !old.mine &&
			info.State.Status == container.StateRunning && info.State.StartedAt == old.started {
			// Unhealthy, and nothing was done to it: this is not the work of the
			// release, which may be what it waits for.
			v.standing = pending
		}
		v.service, v.name = service, strings.TrimPrefix(info.Name, "/")
		verdicts = append(verdicts, v)
	}
	for _, name := range w.p.ServiceNames() {
		s := w.p.Services[name]
		for range s.GetScale() - found[name] {
			verdicts = append(verdicts, verdict{service: name, reason: "has no container"})
		}
	}
	slices.SortStableFunc(verdicts, func(a, b verdict) int { return strings.Compare(a.service, b.service) })
	return verdicts, nil
}

// mask takes secrets out of what the engine quotes, before anybody shortens it.
func (w *watch) mask(s *container.State) {
	if s == nil {
		return
	}
	s.Error = w.masker.String(s.Error)
	if s.Health != nil {
		for _, check := range s.Health.Log {
			if check != nil {
				check.Output = w.masker.String(check.Output)
			}
		}
	}
}

// laggards says in one line which services are not up, for a timeout.
func laggards(verdicts []verdict) string {
	var texts []string
	for _, v := range verdicts {
		if v.standing == pending || v.standing == failed {
			text := fmt.Sprintf("service %q %s", v.service, v.reason)
			if !slices.Contains(texts, text) {
				texts = append(texts, text)
			}
		}
	}
	return strings.Join(texts, ", ")
}
