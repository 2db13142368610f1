-- The tables that a v4.2 backend owns, for tests. What the agent itself can
-- create for an empty database is a file of its own and compared with this one.
CREATE EXTENSION IF NOT EXISTS "uuid-ossp";

CREATE TABLE release_artifact (
    id              uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    release_version varchar(100) NOT NULL,
    chart_type      varchar(20)  NOT NULL,
    artifact_data   bytea        NOT NULL,
    env_data        text,
    values_data     text,
    sha256          varchar(64)  NOT NULL,
    is_current      boolean DEFAULT false,
    is_previous     boolean DEFAULT false,
    downloaded_at   timestamptz,
    prepared_at     timestamptz,
    applied_at      timestamptz,
    created_at      timestamptz DEFAULT now()
);

CREATE TABLE agent_task (
    id                  uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    type                varchar(50) NOT NULL,
    status              varchar(50) NOT NULL DEFAULT 'pending',
    release_artifact_id uuid REFERENCES release_artifact (id),
    execute_after       timestamptz NOT NULL DEFAULT now(),
    picked_up_at        timestamptz,
    completed_at        timestamptz,
    last_heartbeat      timestamptz,
    result              jsonb,
    error_message       text,
    created_at          timestamptz DEFAULT now(),
    updated_at          timestamptz DEFAULT now()
);

CREATE TABLE admin (
    id                uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    name              varchar(255),
    email             varchar(255) UNIQUE NOT NULL,
    password          varchar(255),
    is_active         boolean DEFAULT true,
    role              varchar(50) NOT NULL DEFAULT 'ADMIN',
    created_at        timestamptz DEFAULT now(),
    updated_at        timestamptz DEFAULT now(),
    profile_image_url varchar(500)
);

CREATE TABLE server_env (
    id          uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    key         varchar(255) UNIQUE NOT NULL,
    value       text NOT NULL,
    category    varchar(50) NOT NULL,
    description text,
    is_active   boolean DEFAULT true,
    created_at  timestamptz DEFAULT now(),
    updated_at  timestamptz DEFAULT now(),
    updated_by  varchar(255)
);

CREATE TABLE deployment_config (
    id                       uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    deployment_type          varchar(20) NOT NULL,
    namespace                varchar(100),
    helm_release_name        varchar(100),
    compose_project_name     varchar(100),
    maintenance_mode_enabled boolean DEFAULT false,
    last_agent_poll          timestamptz,
    smtp_host                varchar(255),
    smtp_port                integer,
    smtp_user                varchar(255),
    smtp_password            varchar(255),
    smtp_from                varchar(255),
    created_at               timestamptz DEFAULT now(),
    updated_at               timestamptz DEFAULT now()
);

CREATE INDEX idx_agent_task_status         ON agent_task (status);
CREATE INDEX idx_agent_task_execute_after  ON agent_task (execute_after);
CREATE INDEX idx_release_artifact_current  ON release_artifact (is_current, chart_type);
CREATE INDEX idx_release_artifact_previous ON release_artifact (is_previous, chart_type);
