-- The agent's own schema, version 1. Every statement may be repeated.
create schema if not exists wrktalk_agent;

create table if not exists wrktalk_agent.schema_version (
    version    integer primary key,
    applied_at timestamptz not null default clock_timestamp()
);

-- One row per claim of a task.
create table if not exists wrktalk_agent.attempt (
    task    text not null,
    token   text not null,
    owner   text not null,
    started timestamptz not null default clock_timestamp(),
    ended   timestamptz,
    note    text,
    primary key (task, token)
);

-- The timeline of a task.
create table if not exists wrktalk_agent.event (
    seq       bigint generated always as identity primary key,
    task      text not null,
    token     text not null,
    at        timestamptz not null,
    component text not null,
    phase     text not null,
    text      text not null
);
create index if not exists event_task on wrktalk_agent.event (task, seq);
-- A repeated write adds nothing.
create unique index if not exists event_once
    on wrktalk_agent.event (task, token, at, component, phase, md5(text));

-- What became of each mail.
create table if not exists wrktalk_agent.outbox (
    task       text not null,
    recipient  text not null,
    message_id text not null,
    state      text not null,
    attempts   integer not null default 0,
    at         timestamptz not null default clock_timestamp(),
    primary key (message_id, recipient)
);
create index if not exists outbox_task on wrktalk_agent.outbox (task);

-- What operators want cancelled; the runner of that claim asks for it.
create table if not exists wrktalk_agent.cancellation (
    task   text not null,
    token  text not null,
    reason text not null,
    at     timestamptz not null default clock_timestamp(),
    primary key (task, token)
);

-- A hint for waiting agents. Nothing that goes wrong here may fail the
-- backend's own statement.
create or replace function wrktalk_agent.notify_task() returns trigger
    language plpgsql set search_path = pg_catalog
as $$
begin
    begin
        perform pg_notify('wrktalk_agent_task', new.id::text);
    exception when others then
        null;
    end;
    return null;
end
$$;

-- A task that ended makes room for the next one, so that is announced as well.
create or replace trigger wrktalk_agent_notify
    after insert or update of status, execute_after on agent_task
    for each row when (new.status::text <> 'inProgress')
    execute function wrktalk_agent.notify_task();

insert into wrktalk_agent.schema_version (version) values (1) on conflict do nothing;
