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

// inflated is the tar stream.
type inflated struct {
	gz       *gzip.Reader
	n        int64 // bytes read
	zeros    int   // zero bytes at the end of what was read since it was reset
	written  *int64
	overhead int64 // most bytes that may be read beyond those written
}

func (s *inflated) Read(p []byte) (int, error) {
	if s.n-*s.written > s.overhead {
		return 0, refuse("", "holds more than %d bytes of headers and padding", s.overhead)
	}
	n, err := s.gz.Read(p)
	s.n += int64(n)
	if z := trailingZeros(p[:n]); z == n {
		s.zeros += n
	} else {
		s.zeros = z
	}
	return n, err
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
	case first:
		return refuse("", "is not a gzip'd tar archive (%v)", err)
	case errors.Is(err, gzip.ErrHeader):
		return refuse(entry, "is followed by data that is not gzip")
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
