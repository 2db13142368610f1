// Package platform says what an agent can deploy to: one row of a table per
// platform, which every other package asks instead of comparing names.
//
// A row holds what is true of a platform wherever it is installed. What an
// installation decides, such as a namespace or a limit of time, is configuration.
package platform

import (
	"slices"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Platform is a row of the table.
type Platform struct {
	Type  task.DeploymentType // in agent.deployment_type and deployment_config
	Chart task.ChartType      // of the release artifacts that it deploys
	Name  string              // of its releases in sentences
	Text  Text                // which of a release artifact's texts it uses

	// LockKey is the second key of the advisory lock under which an agent claims.
	// It is the same for every version of the agent.
	LockKey int32
	// NameColumn is the column of deployment_config that names the release.
	NameColumn string

	// SingleFile is true when one of MainFiles may be all of a release.
	SingleFile bool
	// IgnoreFile is the name of the file that lists what of a directory is not to be
	// packed.
	IgnoreFile string

	// KeepsBundles is true when each release is kept on the agent's host, without
	// its text: what a rollback without the database goes back to, and needs the
	// text for. Otherwise the platform itself has kept both.
	KeepsBundles bool
	// RepairsUnconfirmed is true when an interrupted deployment is repaired though
	// the database does not confirm the claim: it may be part of what is deployed.
	RepairsUnconfirmed bool
	// StopsAtLease is true when a deployment is killed before its claim's lease
	// ends without a confirmation, because a second agent could then change the
	// same release at the same time.
	StopsAtLease bool
}

// Text is one of the two texts that a release artifact has beside its archive.
type Text struct {
	Flag string // of push; the column's name as well
	Name string // in sentences
	File string // as people call the file
}

// UsedBy returns the platforms whose releases have the text.
func (t Text) UsedBy() []Platform { return Where(func(p Platform) bool { return p.Text == t }) }

// The texts of a release artifact.
var (
	Values = Text{Flag: "values", Name: "values", File: "values.yaml"}
	Env    = Text{Flag: "env", Name: ".env", File: ".env"}
)

// All is the table. The first row takes what could belong to several.
var All = []Platform{
	{
		Type: task.DeploymentKubernetes, Chart: task.ChartHelm, Name: "Helm", Text: Values,
		LockKey: 1, NameColumn: "helm_release_name",
		IgnoreFile:   ".helmignore",
		StopsAtLease: true,
	},
	{
		Type: task.DeploymentDocker, Chart: task.ChartCompose, Name: "Compose", Text: Env,
		LockKey: 2, NameColumn: "compose_project_name",
		SingleFile: true, IgnoreFile: ".dockerignore",
		KeepsBundles: true, RepairsUnconfirmed: true,
	},
}

// Of returns the platform of a deployment type; the zero Platform, with empty
// names, for a type that is not in the table.
func Of(t task.DeploymentType) Platform {
	for _, p := range All {
		if p.Type == t {
			return p
		}
	}
	return Platform{}
}

var mainFiles = map[task.DeploymentType][]string{
	task.DeploymentKubernetes: {"Chart.yaml"},
	task.DeploymentDocker:     {"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"},
}

// MainFiles returns the names of the file that makes a directory a release, the one to
// prefer first.
func (p Platform) MainFiles() []string { return slices.Clone(mainFiles[p.Type]) }

// Types returns the deployment types in the table's order.
func Types() []task.DeploymentType {
	types := make([]task.DeploymentType, len(All))
	for i, p := range All {
		types[i] = p.Type
	}
	return types
}

// Others returns every platform but p.
func (p Platform) Others() []Platform {
	return Where(func(other Platform) bool { return other.Type != p.Type })
}

// Where returns the platforms for which holds is true.
func Where(holds func(Platform) bool) []Platform {
	var found []Platform
	for _, p := range All {
		if holds(p) {
			found = append(found, p)
		}
	}
	return found
}

// Join returns what text says of each of the platforms, with sep between.
func Join(platforms []Platform, sep string, text func(Platform) string) string {
	texts := make([]string, len(platforms))
	for i, p := range platforms {
		texts[i] = text(p)
	}
	return strings.Join(texts, sep)
}

// Names joins the names of the platforms for a sentence.
func Names(platforms []Platform) string {
	return Join(platforms, " or ", func(p Platform) string { return p.Name })
}
