package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// app is what a command sees of the world.
type app struct {
	environ        []string
	stdin          io.Reader
	stdout, stderr io.Writer
	euid           int
	command        string // name of the command that runs

	configFile string
	sets       []string
	output     string // text or json, of the commands that register it
}

// config loads the configuration.
func (a *app) config() (*config.Config, error) {
	cfg, err := config.Load(config.Source{File: a.configFile, Environ: a.environ, Sets: a.sets, Euid: a.euid})
	if err != nil {
		return nil, usageError{err}
	}
	return cfg, nil
}

// database opens the database of cfg without connecting. The caller closes it.
func (a *app) database(ctx context.Context, cfg *config.Config) (*taskdb.DB, error) {
	db, err := taskdb.Open(ctx, taskdb.Options{
		ConnString: cfg.DB.ConnString().Reveal(),
		AppName:    "wrktalk-agent " + a.command,
		MaxConns:   int32(cfg.DB.MaxConns),
	})
	if err != nil {
		return nil, usageError{err}
	}
	return db, nil
}

// configured loads the configuration and opens its database. The caller closes
// that.
func (a *app) configured(ctx context.Context) (*config.Config, *taskdb.DB, error) {
	cfg, err := a.config()
	if err != nil {
		return nil, nil, err
	}
	db, err := a.database(ctx, cfg)
	return cfg, db, err
}

// withDatabase calls do with an open database and the configuration. The context
// of do ends when a person or the system ends the command.
func (a *app) withDatabase(do func(context.Context, *taskdb.DB, *config.Config) error) error {
	ctx, stop := interruptible()
	defer stop()
	cfg, db, err := a.configured(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	if err = do(ctx, db, cfg); errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// interruptible returns a context that ends when a person or the system ends
// the command.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
}

// client returns what asks about the agent of cfg; db may be nil.
func client(cfg *config.Config, db *taskdb.DB) *operator.Client {
	return &operator.Client{
		DB: db, Target: deploymentOf(cfg).target,
		StagingDir: cfg.Staging.Dir, HistoryDir: cfg.History.Dir, StagingKeep: cfg.Staging.Keep, ReadMail: readMail,
		MaxAttempts: cfg.Agent.MaxAttempts, Listen: cfg.HTTP.Listen,
		PollInterval: cfg.Agent.PollInterval, Heartbeat: cfg.Agent.HeartbeatInterval, Lease: cfg.Agent.Lease,
	}
}

// logger returns the log a component or the supervisor writes to w.
func logger(w io.Writer, cfg *config.Config) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Log.Level}
	text := cfg.Log.Format == "text"
	if cfg.Log.Format == "auto" {
		text = isTerminal(w)
	}
	if text {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

// isTerminal reports whether w is a terminal that a person looks at.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// printJSON prints v for a program.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
