-- The WrkTalk v4.2 tables, for a database that has none of them. The names,
-- types and defaults are the backend's; nothing of the agent's own is in here.
create table release_artifact (
    id              uuid primary key default uuid_generate_v4(),
    release_version varchar(100) not null,
    chart_type      varchar(20) not null,
    artifact_data   bytea not null,
    env_data        text,
    values_data     text,
    sha256          varchar(64) not null,
    is_current      boolean default false,
    is_previous     boolean default false,
    downloaded_at   timestamptz,
    prepared_at     timestamptz,
    applied_at      timestamptz,
    created_at      timestamptz default now()
);

create table agent_task (
    id                  uuid primary key default uuid_generate_v4(),
    type                varchar(50) not null,
    status              varchar(50) not null default 'pending',
    release_artifact_id uuid references release_artifact (id),
    execute_after       timestamptz not null default now(),
    picked_up_at        timestamptz,
    completed_at        timestamptz,
    last_heartbeat      timestamptz,
    result              jsonb,
    error_message       text,
    created_at          timestamptz default now(),
    updated_at          timestamptz default now()
);

create table admin (
    id                uuid primary key default uuid_generate_v4(),
    name              varchar(255),
    email             varchar(255) unique not null,
    password          varchar(255),
    is_active         boolean default true,
    role              varchar(50) not null default 'ADMIN',
    created_at        timestamptz default now(),
    updated_at        timestamptz default now(),
    profile_image_url varchar(500)
);

create table server_env (
    id          uuid primary key default uuid_generate_v4(),
    key         varchar(255) unique not null,
    value       text not null,
    category    varchar(50) not null,
    description text,
    is_active   boolean default true,
    created_at  timestamptz default now(),
    updated_at  timestamptz default now(),
    updated_by  varchar(255)
);

create table deployment_config (
    id                       uuid primary key default uuid_generate_v4(),
    deployment_type          varchar(20) not null,
    namespace                varchar(100),
    helm_release_name        varchar(100),
    compose_project_name     varchar(100),
    maintenance_mode_enabled boolean default false,
    last_agent_poll          timestamptz,
    smtp_host                varchar(255),
    smtp_port                integer,
    smtp_user                varchar(255),
    smtp_password            varchar(255),
    smtp_from                varchar(255),
    created_at               timestamptz default now(),
    updated_at               timestamptz default now()
);

create index idx_agent_task_status on agent_task (status);
create index idx_agent_task_execute_after on agent_task (execute_after);
create index idx_release_artifact_current on release_artifact (is_current, chart_type);
create index idx_release_artifact_previous on release_artifact (is_previous, chart_type);
