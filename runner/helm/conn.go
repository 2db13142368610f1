package helm

import (
	"encoding/json"
	"io"
	"os"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// eventFD is the descriptor on which the child writes events.
const eventFD = 3

// maxCommand bounds what the child reads, in bytes.
const maxCommand = 2 << 20

// commandName says what a child is to do.
type commandName string

const (
	commandUpgrade   commandName = "upgrade"
	commandRollback  commandName = "rollback"
	commandUninstall commandName = "uninstall"
	commandWait      commandName = "wait"
)

// command is what the parent writes to the child's standard input, once. It holds
// no secrets: values are read from their file.
type command struct {
	Name          commandName  `json:"name"`
	Job           protocol.Job `json:"job"`
	Action        string       `json:"action"`                   // the label of new revisions
	Revision      int          `json:"revision,omitempty"`       // to roll back to
	AwaitApproval bool         `json:"await_approval,omitempty"` // check first, then wait
	Until         time.Time    `json:"until"`
}

// approval answers AwaitsApproval, and, empty, Secrets.
type approval struct {
	Install bool `json:"install"` // there is no release: install, do not upgrade
}

// event is one line of the child. What it tells stands in one of its fields; Error
// and Late come with Done.
type event struct {
	Phase          task.Phase          `json:"phase,omitempty"`
	Text           string              `json:"text,omitempty"`            // with Phase
	Secrets        []map[string]string `json:"secrets,omitempty"`         // to be masked from here on
	AwaitsApproval bool                `json:"awaits_approval,omitempty"` // all checks passed: may it begin?
	Changed        bool                `json:"changed,omitempty"`         // the cluster is about to be changed
	Created        int                 `json:"created,omitempty"`         // the revision is recorded
	NotUndone      string              `json:"not_undone,omitempty"`      // something of an earlier revision stays: why
	Hook           *deploy.Diagnosis   `json:"hook,omitempty"`            // why a hook failed
	Done           bool                `json:"done,omitempty"`            // the last one
	Error          string              `json:"error,omitempty"`
	Late           bool                `json:"late,omitempty"` // the time was up
}

// conn is the child's end of the conversation.
type conn struct {
	in        *json.Decoder
	approvals chan approval

	mu  sync.Mutex
	out *os.File
}

// newConn takes over standard input and descriptor 3.
func newConn() *conn {
	return &conn{
		in:  json.NewDecoder(io.LimitReader(os.Stdin, maxCommand)),
		out: os.NewFile(eventFD, "events"), approvals: make(chan approval, 1),
	}
}

func (c *conn) send(e event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A parent that cannot be told is gone; listen ends us then.
	_ = json.NewEncoder(c.out).Encode(e)
}

// listen passes approvals on, and ends the process when the parent is gone.
func (c *conn) listen() {
	for {
		var a approval
		if err := c.in.Decode(&a); err != nil {
			os.Exit(1)
		}
		c.approvals <- a
	}
}

// requestApproval asks to begin. A no comes as the end of this process.
func (c *conn) requestApproval() approval {
	c.send(event{AwaitsApproval: true})
	return <-c.approvals
}

// sendSecrets tells the parent what to mask, and waits until it does.
func (c *conn) sendSecrets(secrets []map[string]string) {
	c.send(event{Secrets: secrets})
	<-c.approvals
}
