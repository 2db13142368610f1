package process

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Output reads what a child writes to some of its descriptors.
type Output struct {
	fds  []int
	read func(io.Reader)
}

// Copy writes to w what the child writes to the descriptors, in the order in
// which it does. An error of w ends the copying: the child then writes to a
// broken pipe.
func Copy(w io.Writer, fds ...int) Output {
	return Output{fds: fds, read: func(r io.Reader) { _, _ = io.Copy(w, r) }}
}

// Lines calls f for each line, without its newline, and for an unfinished last
// one. Of a longer line only limit bytes are kept; cut is how many were not. The
// line is valid during the call alone.
func Lines(limit int, f func(line []byte, cut int), fds ...int) Output {
	return Output{fds: fds, read: func(r io.Reader) { eachLine(r, limit, f) }}
}

// JSON calls f for each line of at most limit bytes that is a JSON value of type
// T. Other lines are passed over: a process may be killed while it writes one.
func JSON[T any](limit int, f func(T), fd int) Output {
	return Lines(limit, func(line []byte, cut int) {
		var v T
		if cut == 0 && json.Unmarshal(line, &v) == nil {
			f(v)
		}
	}, fd)
}

func eachLine(r io.Reader, limit int, f func(line []byte, cut int)) {
	br := bufio.NewReaderSize(r, 4<<10)
	var line []byte
	cut := 0
	for {
		frag, err := br.ReadSlice('\n')
		frag = bytes.TrimSuffix(frag, []byte{'\n'})
		fits := min(len(frag), limit-len(line))
		line = append(line, frag[:fits]...)
		cut += len(frag) - fits
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err == nil || len(line) > 0 {
			f(line, cut)
		}
		if err != nil {
			return
		}
		line, cut = line[:0], 0
	}
}

// drainLimit is how many bytes are still read from the pipe of a child that has
// ended: more than a pipe's buffer holds, so that only a grandchild that keeps on
// writing reaches it.
const drainLimit = 256 << 10

// pipeReader reads a child's pipe. Once drain was called it reads what is in the
// pipe already and then ends.
type pipeReader struct {
	file    *os.File // not embedded: io.Copy would go by its WriteTo
	drained int
}

func (p *pipeReader) Read(b []byte) (int, error) {
	n, err := p.file.Read(b)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	raw, err := p.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	if err := raw.Control(func(fd uintptr) { n, readErr = unix.Read(int(fd), b) }); err != nil {
		return 0, err
	}
	if p.drained += n; readErr != nil || n <= 0 || p.drained > drainLimit {
		return 0, io.EOF
	}
	return n, nil
}

// drain makes a blocked Read return and later ones take only what is there.
func (p *pipeReader) drain() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) }
