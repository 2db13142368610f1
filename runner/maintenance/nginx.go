package maintenance

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
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

func (n *nginx) prepare(context.Context, *record) (bool, error) {
	state, err := lookAtFlag(n.flagFile, nil)
	return state == flagForeign, err
}

func (n *nginx) enable(ctx context.Context, r *record, _ func() error) error {
	state, err := lookAtFlag(n.flagFile, r)
	if err != nil {
		return err
	}
	if state == flagAbsent {
		if err := createFlag(n.flagFile, r); err != nil {
			return err
		}
	}
	before := nginxWorkers()
	if err := n.reload(ctx); err != nil || n.reloadCommand == "" {
		return err
	}
	n.waitForOldWorkers(ctx, before)
	// A reload that succeeds proves nothing: without the snippet, nginx goes on
	// serving the application (TestNginxThatDoesNotLookForTheFlag).
	if config, err := n.configuration(ctx); err == nil {
		if err := n.looksForFlag(config); err != nil {
			return unverifiedError{err}
		}
	}
	return nil
}

func (n *nginx) disable(ctx context.Context, r *record) (bool, error) {
	kept, err := removeFlag(n.flagFile, r)
	if kept || err != nil {
		return kept, err
	}
	return false, n.reload(ctx)
}

func (n *nginx) state(_ context.Context, r *record) (on, ours bool, err error) {
	state, err := lookAtFlag(n.flagFile, r)
	return state == flagOurs || state == flagForeign, state == flagOurs, err
}

// reload runs the reload command. Its failure leaves open whether nginx, if it
// is there at all, heeds the flag.
func (n *nginx) reload(ctx context.Context) error {
	if err := fault.Point("maintenance.nginx.reload:" + n.flagFile); err != nil {
		return unverifiedError{err}
	}
	if n.reloadCommand == "" {
		return nil
	}
	if err := runShell(ctx, n.reloadCommand); err != nil {
		return unverifiedError{fmt.Errorf("reload nginx with maintenance.reload_command: %w: check that nginx runs here, or choose another maintenance.mode_handler", err)}
	}
	return nil
}

// waitForOldWorkers returns when the workers that ran before the reload are
// gone, and with them the requests that had begun before the page was on.
// Websockets may keep a worker for hours, and a second nginx on the machine is
// not reloaded at all, so the wait is bounded.
func (n *nginx) waitForOldWorkers(ctx context.Context, before []int) {
	if n.drain < 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.drain)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for anyNginxWorker(before) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.log.Info("nginx workers from before the reload still serve connections that are open", "drain", n.drain)
			return
		}
	}
}

// maxConfig bounds how much of nginx's configuration is looked through, in bytes.
const maxConfig = 8 << 20

// configuration returns what nginx takes for its configuration. It is "", which
// looksForFlag lets pass, where the reload command is not nginx's own.
func (n *nginx) configuration(ctx context.Context) (string, error) {
	program, ok := strings.CutSuffix(n.reloadCommand, " -s reload")
	if !ok {
		return "", nil
	}
	config, err := shell(ctx, program+" -T", maxConfig)
	if err != nil {
		return "", fmt.Errorf("nginx does not accept its configuration: %w", err)
	}
	return config, nil
}

// looksForFlag returns an error unless a line of config names the flag file.
func (n *nginx) looksForFlag(config string) error {
	if config == "" {
		return nil
	}
	for line := range strings.Lines(config) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") && strings.Contains(line, n.flagFile) {
			return nil
		}
	}
	return fmt.Errorf("nginx's configuration does not look for %s: include wrktalk-maintenance.conf in the server block", n.flagFile)
}
