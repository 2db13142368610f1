package runner

import (
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/process"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// maxMessage bounds one line that wrktalk-deploy sends, in bytes.
const maxMessage = 1 << 20

// deployProcess is one running wrktalk-deploy.
type deployProcess struct {
	*process.Process
	messages chan protocol.Message // all have been received when Done is closed
}

// startDeploy starts program, a wrktalk-deploy, with the job on its standard
// input. Everything it prints goes to output. It sees env and nothing else of the
// environment. The caller receives messages until Done is closed.
func startDeploy(program string, env []string, job protocol.Job, output io.Writer) (*deployProcess, error) {
	messages := make(chan protocol.Message)
	p, err := process.Start(process.Command{
		Path: program, Env: env, Dir: "/",
		DeathSignal: syscall.SIGKILL, OwnGroup: true,
		Outputs: []process.Output{
			process.Copy(output, 1, 2),
			process.JSON(maxMessage, func(m protocol.Message) { messages <- m }, protocol.MessageFD),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	if err := p.Send(job); err != nil {
		p.Kill() // it ended before it read its job; its state says how
	}
	return &deployProcess{p, messages}, nil
}

// interrupt asks the process to give up and restore what served before.
func (p *deployProcess) interrupt() { p.Signal(syscall.SIGTERM) }

// exitReason says how a process ended that gave no result.
func exitReason(exit *os.ProcessState) string {
	if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		return fmt.Sprintf("was ended by signal %d (%s)", st.Signal(), st.Signal())
	}
	return fmt.Sprintf("ended with exit code %d and no result", exit.ExitCode())
}
