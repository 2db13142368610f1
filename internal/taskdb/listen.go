package taskdb

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// channel is where the trigger of a migrated database announces work.
const channel = "wrktalk_agent_task"

// pingInterval is how often an idle listener makes sure that its connection
// still stands.
const pingInterval = time.Minute

// Listen calls hint whenever the database announces work, and once after every
// connect, since announcements are lost in between. It is a hint, never a
// promise: notifications do not pass transaction poolers. Who listens still
// polls.
//
// It holds one connection of its own, comes back with backoff when that is
// lost, and returns nil when ctx ends. Without the agent's schema, also when
// that is removed later, it returns ErrNotMigrated: there would be nothing to
// hear.
func (db *DB) Listen(ctx context.Context, hint func()) error {
	for n := 0; ctx.Err() == nil; n++ {
		err := db.listen(ctx, func() { n = 0; hint() })
		if errors.Is(err, ErrNotMigrated) {
			return tidy("listen for tasks", err)
		}
		_ = backoff(ctx, n)
	}
	return nil
}

func (db *DB) listen(ctx context.Context, hint func()) error {
	if v, err := db.Migrated(ctx); err != nil {
		return err
	} else if v == 0 {
		return ErrNotMigrated
	}
	conn, err := pgx.ConnectConfig(ctx, db.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(end)
	}()
	if err := within(ctx, func(ctx context.Context) error {
		_, err := conn.Exec(ctx, "listen "+channel)
		return err
	}); err != nil {
		return err
	}
	hint()
	for {
		quiet, cancel := context.WithTimeout(ctx, pingInterval)
		_, err := conn.WaitForNotification(quiet)
		timedOut := quiet.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			hint()
		case timedOut:
			if err := within(ctx, conn.Ping); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// within bounds one exchange with the server.
func within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return f(ctx)
}
