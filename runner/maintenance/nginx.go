package maintenance

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// nginx switches by a flag file that nginx looks for at every request. The
// reload after it does two things a file cannot: workers that cached the file's
// absence (open_file_cache) are replaced, and the old ones end when the requests
// they had begun are answered, which Enter can wait for.
type nginx struct {
	flagFile      string
	reloadCommand string
	drain         time.Duration
	log           *slog.Logger
}

func (n *nginx) plan(context.Context, *record) (bool, error) {
	state, err := lookAtFlag(n.flagFile, nil)
	return state == flagForeign, err
}

func (n *nginx) on(ctx context.Context, r *record, _ func() error) error {
	state, err := lookAtFlag(n.flagFile, r)
	if err != nil {
		return err
	}
	if state == flagAbsent {
		if err := raiseFlag(n.flagFile, r); err != nil {
			return err
		}
	}
	before := nginxWorkers()
	if err := n.reload(ctx); err != nil || n.reloadCommand == "" {
		return err
	}
	why := make(chan error, 1)
	go func() { why <- n.unseen(ctx) }() // meanwhile
	n.waitForOldWorkers(ctx, before)
	if err := <-why; err != nil {
		return unsure{err}
	}
	return nil
}

func (n *nginx) off(ctx context.Context, r *record) (bool, error) {
	kept, err := lowerFlag(n.flagFile, r)
	if kept || err != nil {
		return kept, err
	}
	return false, n.reload(ctx)
}

func (n *nginx) look(_ context.Context, r *record) (on, ours bool, err error) {
	state, err := lookAtFlag(n.flagFile, r)
	return state == flagOurs || state == flagForeign, state == flagOurs, err
}

// reload runs the reload command. Its failure leaves open whether nginx, if it
// is there at all, heeds the flag.
func (n *nginx) reload(ctx context.Context) error {
	if err := fault.Point("maintenance.nginx.reload:" + n.flagFile); err != nil {
		return unsure{err}
	}
	if n.reloadCommand == "" {
		return nil
	}
	if err := runShell(ctx, n.reloadCommand); err != nil {
		return unsure{fmt.Errorf("reload nginx with maintenance.reload_command: %w: check that nginx runs here, or choose another maintenance.mode_handler", err)}
	}
	return nil
}

// waitForOldWorkers returns when the workers that ran before the reload are
// gone, and with them the requests that had begun before the page was on.
// Websockets may keep a worker for hours, and a second nginx on the machine is
// not reloaded at all, so the wait is bounded.
func (n *nginx) waitForOldWorkers(ctx context.Context, before []process) {
	if n.drain < 0 || len(before) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.drain)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if !anyAlive(before) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.log.Info("nginx workers from before the reload still serve connections that are open", "drain", n.drain)
			return
		}
	}
}
