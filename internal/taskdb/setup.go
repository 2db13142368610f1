package taskdb

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
)

// Setup is what deployment_config and admin are to say. What is nil stays as it is.
type Setup struct {
	Host, User, Password, From *string // see MailSettings; "" removes what is there
	Port                       *int    // 0 is the server's usual one
	Admins                     []Admin // to be mailed
}

// SetupReport is what Setup did.
type SetupReport struct {
	NewRow      bool     // deployment_config had no row, and has one now
	Added       []string // addresses of administrators who were not there
	Reactivated []string // addresses of those who were there, and not active
}

// Setup writes s for a target, all of it or nothing. The target's row is the one that
// MailSettings reads first; where there is none at all, it is made. Administrators who
// are there are left as they are, but for being active. New ones have no password: what
// they need to log in, the backend gives them.
func (db *DB) Setup(ctx context.Context, target Target, s Setup) (*SetupReport, error) {
	var report *SetupReport
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		report = &SetupReport{} // of this try
		if err := setupConfig(ctx, tx, target, s, report); err != nil {
			return err
		}
		for _, admin := range s.Admins {
			if err := setupAdmin(ctx, tx, admin, report); err != nil {
				return err
			}
		}
		return nil
	})
	return report, wrap("write the settings", err)
}

func setupConfig(ctx context.Context, tx pgx.Tx, target Target, s Setup, report *SetupReport) error {
	var id string
	err := tx.QueryRow(ctx, `select id::text from deployment_config where id = `+configRow+` for update`, target.configArgs()...).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		report.NewRow = true
		id, err = newConfigRow(ctx, tx, target)
	}
	if err != nil {
		return err
	}
	set := []string{"updated_at = now()"}
	args := []any{id}
	column := func(name string, value any) {
		args = append(args, value)
		set = append(set, fmt.Sprintf("%s = $%d", name, len(args)))
	}
	for _, c := range []struct {
		name string
		text *string
	}{{"smtp_host", s.Host}, {"smtp_user", s.User}, {"smtp_password", s.Password}, {"smtp_from", s.From}} {
		switch {
		case c.text == nil:
		case *c.text == "":
			column(c.name, nil)
		default:
			column(c.name, *c.text)
		}
	}
	if s.Port != nil {
		var port *int
		if *s.Port > 0 {
			port = s.Port
		}
		column("smtp_port", port)
	}
	_, err = tx.Exec(ctx, `update deployment_config set `+strings.Join(set, ", ")+` where id = $1`, args...)
	return err
}

func newConfigRow(ctx context.Context, tx pgx.Tx, target Target) (string, error) {
	id, err := newRowID(ctx, tx, "deployment_config")
	if err != nil {
		return "", err
	}
	_, err = tx.Exec(ctx, `insert into deployment_config (id, deployment_type, `+platform.Of(target.Deployment).NameColumn+`, namespace, created_at, updated_at)
		overriding system value select $1, $2, $3, nullif($4::text, ''), now(), now()`, id.text, string(target.Deployment), target.Name, target.Namespace)
	return id.text, err
}

func setupAdmin(ctx context.Context, tx pgx.Tx, admin Admin, report *SetupReport) error {
	var active bool
	err := tx.QueryRow(ctx, `select bool_or(coalesce(is_active, false)) from admin where lower(btrim(email)) = lower($1)
		having count(*) > 0`, admin.Email).Scan(&active)
	switch {
	case err == nil && active:
		return nil
	case err == nil:
		report.Reactivated = append(report.Reactivated, admin.Email)
		_, err = tx.Exec(ctx, `update admin set is_active = true, updated_at = now() where lower(btrim(email)) = lower($1)`, admin.Email)
		return err
	case !errors.Is(err, pgx.ErrNoRows):
		return err
	}
	id, err := newRowID(ctx, tx, "admin")
	if err != nil {
		return err
	}
	report.Added = append(report.Added, admin.Email)
	_, err = tx.Exec(ctx, `insert into admin (id, name, email, is_active, created_at, updated_at)
		overriding system value select $1, nullif($2::text, ''), $3, true, now(), now()`, id.text, admin.Name, admin.Email)
	return err
}
