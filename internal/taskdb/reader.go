package taskdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// sliceSize is how much of an artifact is asked for at a time: what a reader
// holds in memory, twice, while it reads. With its frame it fits pgx's buffer
// of one megabyte; a little more would take a buffer of two.
const sliceSize = 1<<20 - 1<<10

// sliceAttempts is how often a slice is asked for before the caller hears of it,
// who reports what is wrong and waits longer.
const sliceAttempts = 5

// ArtifactReader streams an artifact's bytes. It holds one slice and, between
// slices, no connection. A connection that is lost is opened again and the
// slice is asked for once more, a few times; then the caller hears of it. It is
// for one goroutine.
type ArtifactReader struct {
	ctx  context.Context
	db   *DB
	id   string
	size int64

	next   int64  // offset of the next slice
	buf    []byte // the slice's memory, reused
	unread []byte // what of it the caller has not had yet
	err    error
}

// Read returns a reader of the artifact's bytes; size is what Artifact said.
// An artifact that is gone, or is not of that size any more, ends in
// ErrArtifactGone. That the bytes are the right ones only their digest tells.
func (db *DB) Read(ctx context.Context, id string, size int64) *ArtifactReader {
	return &ArtifactReader{ctx: ctx, db: db, id: id, size: size}
}

// Read implements io.Reader.
func (r *ArtifactReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.unread) == 0 && r.err == nil {
		if err := r.fill(); err != nil {
			r.err = err
		}
	}
	if len(r.unread) == 0 {
		return 0, r.err
	}
	n := copy(p, r.unread)
	r.unread = r.unread[n:]
	return n, nil
}

// Close gives the memory back. It never fails; later reads do.
func (r *ArtifactReader) Close() error {
	r.buf, r.unread = nil, nil
	if r.err == nil {
		r.err = errors.New("read artifact: the reader is closed")
	}
	return nil
}

// fill gets the next slice.
func (r *ArtifactReader) fill() error {
	want := min(sliceSize, r.size-r.next)
	if want <= 0 {
		return io.EOF
	}
	doing := fmt.Sprintf("read artifact %q at byte %d", r.id, r.next)
	if r.buf == nil {
		r.buf = make([]byte, 0, want)
	}
	var size int64
	err := retryTransient(r.ctx, sliceAttempts, func() (err error) {
		size, err = r.slice(want)
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return wrap(doing, fmt.Errorf("%w: the row is gone", ErrArtifactGone))
	case r.ctx.Err() != nil:
		return wrap(doing, context.Cause(r.ctx))
	case err != nil:
		return wrap(doing, noSuchID(err))
	case size != r.size || int64(len(r.buf)) != want:
		return wrap(doing, fmt.Errorf("%w: it holds %d bytes, not %d", ErrArtifactGone, size, r.size))
	}
	r.unread = r.buf
	r.next += want
	return nil
}

const sliceQuery = `select octet_length(artifact_data)::bigint, substring(artifact_data from $2::int for $3::int)
	from release_artifact where id = $1`

// slice reads want bytes at r.next into r.buf and returns the whole's size.
func (r *ArtifactReader) slice(want int64) (size int64, err error) {
	// The reader's own context bounds the retries; each slice has its time.
	ctx, cancel := context.WithTimeout(r.ctx, opTimeout)
	defer cancel()
	conn, err := r.db.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	if conn.Conn().Config().DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
		err = conn.QueryRow(ctx, sliceQuery, r.id, r.next+1, want).Scan(&size, &r.buf)
		return size, err
	}
	// In exec mode pgx asks for text, which doubles a bytea and has to be
	// decoded. One level below, the bytes come as they are.
	rows := conn.Conn().PgConn().ExecParams(ctx, sliceQuery, [][]byte{
		[]byte(r.id), strconv.AppendInt(nil, r.next+1, 10), strconv.AppendInt(nil, want, 10),
	}, nil, nil, []int16{pgx.TextFormatCode, pgx.BinaryFormatCode})
	found := rows.NextRow()
	if found {
		values := rows.Values()
		size, err = strconv.ParseInt(string(values[0]), 10, 64)
		r.buf = append(r.buf[:0], values[1]...) // the values are pgx's, and only for now
	}
	if _, closeErr := rows.Close(); closeErr != nil {
		return 0, closeErr
	}
	if err == nil && !found {
		err = pgx.ErrNoRows
	}
	return size, err
}
