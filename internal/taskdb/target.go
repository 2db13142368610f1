package taskdb

import (
	"context"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Target is what one agent deploys to. Agents of the same deployment type on
// the same database share a target: one works, the others stand by.
type Target struct {
	Deployment     task.DeploymentType
	Namespace      string // of the Helm release
	HelmRelease    string
	ComposeProject string
}

func (t Target) chart() string { return string(t.Deployment.ChartType()) }

// configRow selects the id of the deployment_config row that is this target's:
// the best match, where the deployment type counts most, then the release's or
// project's name, then the namespace; a name that is not set is better than
// another one's. Without any match it is the oldest row, because backends keep
// a single row and may leave its type wrong. Its parameters are configArgs,
// from $1 on.
const configRow = `(
	select id from deployment_config
	order by
		lower(btrim(coalesce(deployment_type::text, ''))) = $1::text desc,
		case coalesce(btrim(case $1::text when 'kubernetes' then helm_release_name else compose_project_name end), '')
			when $2::text then 2 when '' then 1 else 0 end desc,
		case coalesce(btrim(namespace), '') when $3::text then 2 when '' then 1 else 0 end desc,
		created_at, id
	limit 1)`

func (t Target) configArgs() []any {
	name := t.HelmRelease
	if t.Deployment == task.DeploymentDocker {
		name = t.ComposeProject
	}
	return []any{string(t.Deployment), name, t.Namespace}
}

// MailSettings is what deployment_config says about sending mail. Fields that
// are null there are empty here.
type MailSettings struct {
	Host     string
	Port     int // 0 when not set
	User     string
	Password string
	From     string
}

// MailSettings returns the settings of the target's row, or of the best row
// that names a mail server when the target's own does not. Without any row
// everything is empty.
func (db *DB) MailSettings(ctx context.Context, target Target) (MailSettings, error) {
	var m MailSettings
	var port int64
	// configRow with the rows that have a host moved to the front.
	sql := `select coalesce(smtp_host, ''), coalesce(smtp_port, 0)::bigint, coalesce(smtp_user, ''),
			coalesce(smtp_password, ''), coalesce(smtp_from, '')
		from deployment_config where id = ` +
		strings.Replace(configRow, "order by", "order by coalesce(btrim(smtp_host), '') <> '' desc,", 1)
	err := db.row(ctx, []any{&m.Host, &port, &m.User, &m.Password, &m.From}, sql, target.configArgs()...)
	if err := tidy("read the mail settings", err); err != nil && !isNotFound(err) {
		return MailSettings{}, err
	}
	m.Host, m.From, m.Port = strings.TrimSpace(m.Host), strings.TrimSpace(m.From), int(port)
	return m, nil
}

// Admin is a recipient of mail.
type Admin struct {
	Name  string
	Email string
}

// ActiveAdmins returns the active administrators, each address once whatever
// its case, ordered by address. Passwords are never selected.
func (db *DB) ActiveAdmins(ctx context.Context) ([]Admin, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	const doing = "read the active administrators"
	rows, err := db.pool.Query(ctx, `
		select distinct on (lower(btrim(email))) btrim(coalesce(name, '')), btrim(email)
		from admin where is_active is true and btrim(coalesce(email, '')) <> ''
		order by lower(btrim(email)), created_at, id`)
	if err != nil {
		return nil, tidy(doing, err)
	}
	defer rows.Close()
	var admins []Admin
	for rows.Next() {
		var a Admin
		if err := rows.Scan(&a.Name, &a.Email); err != nil {
			return nil, tidy(doing, err)
		}
		admins = append(admins, a)
	}
	return admins, tidy(doing, rows.Err())
}

// SetMaintenance records in the target's row whether its maintenance page is
// on. Without a row there is nothing to record, and neither is there in a row of
// the other type when releases of that type serve: it tells about the page of
// their agent. Otherwise the type is merely wrong.
func (db *DB) SetMaintenance(ctx context.Context, target Target, on bool) error {
	_, err := db.exec(ctx, `
		update deployment_config set maintenance_mode_enabled = $4::boolean, updated_at = clock_timestamp()
		where id = `+configRow+` and maintenance_mode_enabled is distinct from $4::boolean
			and not (lower(btrim(coalesce(deployment_type::text, ''))) = $5::text and exists (
				select 1 from release_artifact where is_current and lower(btrim(chart_type::text)) = $6::text))`,
		append(target.configArgs(), on, string(target.Deployment.Other()), string(target.Deployment.Other().ChartType()))...)
	return tidy("record the maintenance mode", err)
}

// Maintenance reports whether the target's row says that maintenance is on;
// false when there is no row.
func (db *DB) Maintenance(ctx context.Context, target Target) (bool, error) {
	var on bool
	err := tidy("read the maintenance mode", db.row(ctx, []any{&on},
		`select coalesce(maintenance_mode_enabled, false) from deployment_config where id = `+configRow,
		target.configArgs()...))
	if isNotFound(err) {
		return false, nil
	}
	return on, err
}

// LastPoll returns when an agent last asked for tasks according to the
// target's row, and how long ago that is by the database's clock; nil and 0
// when it never did.
func (db *DB) LastPoll(ctx context.Context, target Target) (*time.Time, time.Duration, error) {
	var at timestamp
	var age *float64
	err := tidy("read the last poll", db.row(ctx, []any{&at, &age}, `
		select last_agent_poll::timestamptz, case when isfinite(last_agent_poll)
			then extract(epoch from clock_timestamp() - last_agent_poll)::float8 end
		from deployment_config where id = `+configRow, target.configArgs()...))
	if isNotFound(err) {
		return nil, 0, nil
	}
	if err != nil || age == nil {
		return nil, 0, err
	}
	return at.instant(), *seconds(age), nil
}
