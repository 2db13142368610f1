package taskdb

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Target is what one agent deploys to. Agents of the same deployment type on
// the same database share a target: one works, the others stand by.
type Target struct {
	Deployment task.DeploymentType
	Name       string // of the Helm release or Compose project
	Namespace  string // of the Helm release
}

// Chart returns the chart type of the releases that t takes, "" when its
// deployment type is not known.
func (t Target) Chart() task.ChartType { return platform.Of(t.Deployment).Chart }

// configRow selects the id of the deployment_config row that is this target's:
// the best match, where the deployment type counts most, then the release's or
// project's name, then the namespace; a name that is not set is better than
// another one's. Without any match it is the oldest row, because backends keep
// a single row and may leave its type wrong. Its parameters are configArgs,
// from $1 on.
var configRow = `(
	select id from deployment_config
	order by
		lower(btrim(coalesce(deployment_type::text, ''))) = $1::text desc,
		case coalesce(btrim(case $1::text ` + caseOf(func(p platform.Platform) string { return p.NameColumn }) + ` end), '')
			when $2::text then 2 when '' then 1 else 0 end desc,
		case coalesce(btrim(namespace), '') when $3::text then 2 when '' then 1 else 0 end desc,
		created_at, id
	limit 1)`

func (t Target) configArgs() []any {
	return []any{string(t.Deployment), t.Name, t.Namespace}
}

// MailSettings is what deployment_config says about sending mail. Fields that
// are null there are empty here.
type MailSettings struct {
	Host     string // empty: mail is not configured
	Port     int    // 0 when not set
	User     string // empty: no login
	Password string
	From     string // an address, or "Name <address>"
}

// String shows the settings without the password.
func (m MailSettings) String() string {
	return fmt.Sprintf("%q port %d, login %q, from %q", m.Host, m.Port, m.User, m.From)
}

// GoString is String: %#v must not show the password either.
func (m MailSettings) GoString() string { return m.String() }

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
	if err := wrap("read the mail settings", err); err != nil && !isNotFound(err) {
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
	admins, err := list(ctx, db, pgx.RowToStructByPos[Admin], `
		select distinct on (lower(btrim(email))) btrim(coalesce(name, '')), btrim(email)
		from admin where is_active is true and btrim(coalesce(email, '')) <> ''
		order by lower(btrim(email)), created_at, id`)
	return admins, wrap("read the active administrators", err)
}

// SetMaintenance records in the target's row whether its maintenance page is
// on. Without a row there is nothing to record, and neither is there in a row of
// another type when releases of that type serve: it tells about the page of
// their agent. Otherwise the type is merely wrong.
func (db *DB) SetMaintenance(ctx context.Context, target Target, on bool) error {
	var types, charts []string
	for _, other := range platform.Of(target.Deployment).Others() {
		types, charts = append(types, string(other.Type)), append(charts, string(other.Chart))
	}
	_, err := db.exec(ctx, `
		update deployment_config set maintenance_mode_enabled = $4::boolean, updated_at = clock_timestamp()
		where id = `+configRow+` and maintenance_mode_enabled is distinct from $4::boolean
			and not exists (select 1 from unnest($5::text[], $6::text[]) as other (type, chart)
				join release_artifact a on a.is_current and lower(btrim(a.chart_type::text)) = other.chart
				where lower(btrim(coalesce(deployment_type::text, ''))) = other.type)`,
		append(target.configArgs(), on, types, charts)...)
	return wrap("record the maintenance mode", err)
}

// Maintenance reports whether the target's row says that maintenance is on;
// false when there is no row.
func (db *DB) Maintenance(ctx context.Context, target Target) (bool, error) {
	var on bool
	err := wrap("read the maintenance mode", db.row(ctx, []any{&on},
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
	err := wrap("read the last poll", db.row(ctx, []any{&at, &age}, `
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
