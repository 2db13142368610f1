// Package task is the vocabulary of the agent: what a task is, the states it
// may be in, what came of it and what is said about it. It depends on nothing
// but the standard library, so that every other package may speak it.
//
// Names and values are those of the v4.2 schema the agent serves; the schema's
// backends differ in column types, so every value here is text.
package task

// ID identifies a row of agent_task. It is opaque text: some backends use uuid,
// others varchar. It never becomes part of a file name unchecked.
type ID string

// Token identifies one claim of a task. It is the text form of picked_up_at as
// the database's clock set it when the claim was made; each later write names
// it, so that a claim which was taken over can change nothing any more.
type Token string

// Kind says what a task asks for.
type Kind string

// The kinds the v4.2 schema knows. A row may hold any other text; such a task
// is failed with a clear message, never left in progress.
const (
	KindDeploy   Kind = "deploy"
	KindRollback Kind = "rollback"
)

// Known reports whether the agent can carry out tasks of kind k.
func (k Kind) Known() bool { return k == KindDeploy || k == KindRollback }

// Status is the life of a task as the database shows it.
type Status string

// The four values of agent_task.status. No others are ever written.
const (
	StatusPending    Status = "pending"
	StatusInProgress Status = "inProgress"
	StatusCompleted  Status = "completed"
	StatusFailed     Status = "failed"
)

// Final reports whether a task in status s will never change again.
func (s Status) Final() bool { return s == StatusCompleted || s == StatusFailed }

// ChartType is the kind of release an artifact holds.
type ChartType string

// The chart types of release_artifact.chart_type.
const (
	ChartHelm    ChartType = "helm"
	ChartCompose ChartType = "compose"
)

// DeploymentType is what an agent deploys to, as deployment_config and
// WRKTALK_AGENT_DEPLOYMENT_TYPE spell it.
type DeploymentType string

// The deployment types of the v4.2 reference; package platform says what belongs
// to each.
const (
	DeploymentKubernetes DeploymentType = "kubernetes"
	DeploymentDocker     DeploymentType = "docker"
)
