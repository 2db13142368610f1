-- Removes what the agent added. The schema itself goes last and without
-- cascade: what somebody else put into it stops this.
drop trigger if exists wrktalk_agent_notify on agent_task;
drop function if exists wrktalk_agent.notify_task();
drop table if exists wrktalk_agent.cancellation, wrktalk_agent.outbox, wrktalk_agent.event, wrktalk_agent.attempt, wrktalk_agent.schema_version;
drop schema if exists wrktalk_agent;
