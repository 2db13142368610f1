package unpack

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
)

// source is the artifact as stored: it hashes and counts what is read, and
// remembers its own error, which the readers above might replace by theirs.
type source struct {
	ctx      context.Context
	r        io.Reader
	buffered *bufio.Reader // reads from the source; what gzip reads from
	hash     hash.Hash
	n        int64
	ended    bool
	err      error // other than io.EOF; final, fit to return
}

func newSource(ctx context.Context, r io.Reader) *source {
	s := &source{ctx: ctx, r: r, hash: sha256.New()}
	s.buffered = bufio.NewReaderSize(s, readSize)
	return s
}

func (s *source) Read(p []byte) (int, error) {
	switch {
	case s.err != nil:
		return 0, s.err
	case s.ended:
		return 0, io.EOF
	case s.ctx.Err() != nil:
		s.err = ctxError(s.ctx)
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.hash.Write(p[:n])
	s.n += int64(n)
	switch {
	case err == io.EOF: // not errors.Is: a wrapped EOF is a failure of the reader
		s.ended = true
	case err != nil && s.ctx.Err() != nil:
		s.err = ctxError(s.ctx)
		err = s.err
	case err != nil:
		s.err = &SourceError{Err: err}
		err = s.err
	}
	return n, err
}

// drain reads what is left, for the digest.
func (s *source) drain(buf []byte) error {
	for {
		_, err := s.Read(buf)
		if s.ended {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *source) digest() string {
	if !s.ended {
		return ""
	}
	return hexSum(s.hash)
}

// inflated is the tar stream: what all gzip members of the artifact hold.
type inflated struct {
	gz       *gzip.Reader // of one member
	src      *bufio.Reader
	ended    bool   // all members were read, the last one's checksum included
	head     []byte // the first bytes, at most HeadSize
	n        int64  // bytes read
	zeros    int    // zero bytes at the end of what was read since it was reset
	written  *int64
	overhead int64 // most bytes that may be read beyond those written
}

func (s *inflated) Read(p []byte) (int, error) {
	if s.n-*s.written > s.overhead {
		return 0, refuse("", "holds more than %d bytes of headers and padding", s.overhead)
	}
	n, err := s.readMembers(p)
	s.n += int64(n)
	if len(s.head) < HeadSize {
		s.head = append(s.head, p[:min(n, HeadSize-len(s.head))]...)
	}
	if z := trailingZeros(p[:n]); z == n {
		s.zeros += n
	} else {
		s.zeros = z
	}
	return n, err
}

func newInflated(src *bufio.Reader) (*inflated, error) {
	gz, err := gzip.NewReader(src)
	if err != nil {
		return nil, err
	}
	gz.Multistream(false)
	return &inflated{gz: gz, src: src}, nil
}

// readMembers reads on from one gzip member to the next.
func (s *inflated) readMembers(p []byte) (int, error) {
	for {
		n, err := s.gz.Read(p)
		if err == io.EOF { // not errors.Is: a failing source may wrap io.EOF
			err = s.nextMember()
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// nextMember begins the gzip member that follows. The error is io.EOF behind the
// last one, which zeros may follow, as gzip has it: tapes and pipes are written in
// blocks (bsdtar -cz DIR > release.tar.gz).
func (s *inflated) nextMember() error {
	next, err := s.src.Peek(1)
	if err == nil && next[0] == 0 {
		err = s.skipZeros()
	}
	switch {
	case err == io.EOF:
		s.ended = true
		return err
	case err != nil:
		return err
	}
	if err := s.gz.Reset(s.src); err != nil {
		return gzip.ErrHeader
	}
	s.gz.Multistream(false)
	return nil
}

// skipZeros reads to the end, or fails at a byte that is not zero.
func (s *inflated) skipZeros() error {
	for {
		if _, err := s.src.Peek(1); err != nil {
			return err
		}
		p, _ := s.src.Peek(s.src.Buffered()) // what is buffered can be read
		if trailingZeros(p) < len(p) {
			return gzip.ErrHeader
		}
		_, _ = s.src.Discard(len(p))
	}
}

func trailingZeros(p []byte) int {
	i := len(p)
	for i > 0 && p[i-1] == 0 {
		i--
	}
	return len(p) - i
}

// readError says what a failure to read from the archive means. entry is being
// read, "" between entries; nothing was read before when first is true.
func (x *extraction) readError(entry string, err error, first bool) error {
	if x.src.err != nil {
		return x.src.err
	}
	var refused *Refusal
	if errors.As(err, &refused) {
		return err
	}
	var corrupt flate.CorruptInputError
	switch {
	case first && x.stream == nil:
		return refuse("", "%s: %s", notGzip(x.head), howToPack)
	case first && (x.stream.ended || !errors.Is(err, io.ErrUnexpectedEOF)) && !errors.Is(err, gzip.ErrChecksum) && !errors.As(err, &corrupt):
		return refuse("", "%s: %s", notTar(x.stream.head, err), howToPack)
	case errors.Is(err, gzip.ErrHeader):
		return refuse("", "is followed by bytes that are neither gzip nor zeros: something was appended to it; %s", howToPack)
	case errors.Is(err, gzip.ErrChecksum):
		return refuse(entry, "is damaged: its gzip checksum is wrong")
	case errors.As(err, &corrupt):
		return refuse(entry, "is damaged: %v", err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return refuse(entry, "is cut off")
	default:
		return refuse(entry, "is not valid: %v", err)
	}
}
