package process

import (
	"os"
	"os/exec"
)

// pipes are those between this process and a child, by the ends this process
// keeps and those it gives away.
type pipes struct {
	input   *os.File
	outputs []*pipeReader
	theirs  []*os.File
}

// connect makes the pipes and has cmd inherit the child's ends.
func connect(cmd *exec.Cmd, c Command) (_ *pipes, err error) {
	p := &pipes{}
	defer func() {
		if err != nil {
			p.closeTheirs()
			p.closeOurs()
		}
	}()
	byFD := make([]*os.File, 3, 6)
	give := func(f *os.File, fds ...int) {
		p.theirs = append(p.theirs, f)
		for _, fd := range fds {
			for fd >= len(byFD) {
				byFD = append(byFD, nil)
			}
			byFD[fd] = f
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.input = w
	give(r, c.Input)
	for _, o := range c.Outputs {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		p.outputs = append(p.outputs, &pipeReader{file: r})
		give(w, o.fds...)
	}
	if byFD[0] != nil { // a nil *os.File would not be a nil io.Reader
		cmd.Stdin = byFD[0]
	}
	if byFD[1] != nil {
		cmd.Stdout = byFD[1]
	}
	if byFD[2] != nil {
		cmd.Stderr = byFD[2]
	}
	cmd.ExtraFiles = byFD[3:]
	return p, nil
}

// A pipe's close has nothing to lose.
func (p *pipes) closeTheirs() {
	for _, f := range p.theirs {
		_ = f.Close()
	}
}

func (p *pipes) closeOurs() {
	if p.input != nil {
		_ = p.input.Close()
	}
	for _, r := range p.outputs {
		_ = r.file.Close()
	}
}
