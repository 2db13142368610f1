package taskdb

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/retry"
)

// channel is where the trigger of a migrated database announces work.
const channel = "wrktalk_agent_task"

// pingInterval is how often an idle listener makes sure that its connection
// still stands.
const pingInterval = time.Minute

// echoTimeout is how long an announcement of our own may take to come back.
const echoTimeout = 10 * time.Second

// ErrUnheard means that announcements do not arrive over this connection.
var ErrUnheard = errors.New("what the database announces does not arrive over this connection, as behind a pooler that shares connections between transactions (PgBouncer with pool_mode = transaction)")

// Listen calls hint whenever the database announces work, and once after every
// connect, since announcements are lost in between. It is a hint, never a
// promise. Who listens still polls.
//
// It holds one connection of its own, comes back with backoff when that is
// lost, and returns nil when ctx ends. Without the agent's schema, also when
// that is removed later, it returns ErrNotMigrated: there would be nothing to
// hear. Notifications do not pass transaction poolers: then it returns ErrUnheard.
func (db *DB) Listen(ctx context.Context, hint func()) error {
	for n := 1; ctx.Err() == nil; n++ {
		err := db.listen(ctx, func() { n = 1; hint() })
		if errors.Is(err, ErrNotMigrated) || errors.Is(err, ErrUnheard) {
			return wrap("listen for tasks", err)
		}
		retry.Sleep(ctx, backoff.Delay(n))
	}
	return nil
}

func (db *DB) listen(ctx context.Context, hint func()) error {
	if s, err := db.AgentSchema(ctx); err != nil {
		return err
	} else if s.Version == 0 {
		return s.err()
	}
	conn, err := db.listener(ctx)
	if err != nil {
		return err
	}
	defer closeListener(ctx, conn)
	if err := db.echo(ctx, conn); err != nil {
		return err
	}
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

// Announced returns nil when announcements arrive over connections such as this
// program makes, and ErrUnheard when they do not.
func (db *DB) Announced(ctx context.Context) error {
	const doing = "listen to an announcement"
	conn, err := db.listener(ctx)
	if err != nil {
		return wrap(doing, err)
	}
	defer closeListener(ctx, conn)
	return wrap(doing, db.echo(ctx, conn))
}

// listener opens a connection of its own, outside the pool.
func (db *DB) listener(ctx context.Context) (*pgx.Conn, error) {
	return pgx.ConnectConfig(ctx, db.pool.Config().ConnConfig)
}

func closeListener(ctx context.Context, conn *pgx.Conn) {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(end)
}

// echo makes an announcement over the pool and waits until conn hears it.
func (db *DB) echo(ctx context.Context, conn *pgx.Conn) error {
	own := "wrktalk_agent_echo_" + strings.ReplaceAll(string(NewTaskID()), "-", "")
	if err := within(ctx, func(ctx context.Context) error {
		if _, err := conn.Exec(ctx, "listen "+own); err != nil {
			return err
		}
		_, err := db.exec(ctx, "select pg_notify($1::text, '')", own)
		return err
	}); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, echoTimeout)
	defer cancel()
	_, err := conn.WaitForNotification(wait)
	if err != nil && ctx.Err() == nil && wait.Err() != nil {
		return ErrUnheard
	}
	if err != nil {
		return err
	}
	return within(ctx, func(ctx context.Context) error {
		_, err := conn.Exec(ctx, "unlisten "+own)
		return err
	})
}

// within bounds one exchange with the server.
func within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return f(ctx)
}
