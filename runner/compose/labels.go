package compose

import (
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/compose/v2/pkg/api"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// The agent's own labels. A container that a later deployment leaves alone
// keeps those of the deployment that made it.
const (
	labelTask    = "com.wrktalk.agent.task"
	labelToken   = "com.wrktalk.agent.token"
	labelRelease = "com.wrktalk.agent.release"
	// labelFirst marks containers of a project that had none before, so that a
	// first installation which died half-way can be told from an upgrade.
	labelFirst = "com.wrktalk.agent.first"
)

// composeVersion is the version of the library in go.mod. The library learns it
// from the linker when the CLI is built; here it would be empty, and with it the
// label that says who made a container.
const composeVersion = "2.40.3"

func init() {
	if api.ComposeVersion == "" {
		api.ComposeVersion = composeVersion
	}
}

// label sets the labels of every service as cmd/compose of the library does,
// and the agent's own.
func label(p *types.Project, job protocol.Job, rel protocol.Release, first bool) {
	for name, s := range p.Services {
		s.CustomLabels = types.Labels{
			api.ProjectLabel:     p.Name,
			api.ServiceLabel:     name,
			api.VersionLabel:     api.ComposeVersion,
			api.WorkingDirLabel:  p.WorkingDir,
			api.ConfigFilesLabel: strings.Join(p.ComposeFiles, ","),
			api.OneoffLabel:      "False",
			labelTask:            string(job.TaskID),
			labelToken:           string(job.Token),
			labelRelease:         rel.Version,
		}
		if first {
			s.CustomLabels[labelFirst] = "true"
		}
		p.Services[name] = s
	}
}
