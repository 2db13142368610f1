package taskdb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// maxArtifact is the largest artifact that can be pushed, in bytes: PostgreSQL
// holds at most a gigabyte in one value, and a bit less in one row.
const maxArtifact = 1000 << 20

// NewArtifact is an artifact to store. Env and Values are secrets.
type NewArtifact struct {
	Version   string
	ChartType task.ChartType
	Data      io.Reader // the tar.gz; read once, to its end
	Size      int64     // of Data in bytes, exactly
	SHA256    string    // of Data in hex; "" is not compared
	Env       *string   // .env text, nil is null
	Values    *string   // values.yaml text, nil is null
}

// Push stores an artifact and returns its id. The bytes are hashed while they
// go out and stored only when size and digest are as promised.
//
// It writes the row by COPY in binary format, which takes one value of any
// length as a stream: memory does not grow with the artifact here, and the
// server holds it once. The server's time limit is the context's.
func (db *DB) Push(ctx context.Context, a NewArtifact) (string, error) {
	doing := fmt.Sprintf("push artifact %q", a.Version)
	switch {
	case a.Size <= 0:
		return "", fmt.Errorf("%s: it is empty", doing)
	case a.Size > maxArtifact:
		return "", fmt.Errorf("%s: it holds %d bytes; PostgreSQL takes at most %d in one row", doing, a.Size, int64(maxArtifact))
	case len(a.Version) > 100 || a.Version == "":
		return "", fmt.Errorf("%s: a version has 1 to 100 characters", doing)
	}
	for _, text := range []struct {
		what string
		text *string
		most int
	}{{"env", a.Env, MaxEnv}, {"values", a.Values, MaxValues}} {
		switch {
		case text.text == nil:
		case len(*text.text) > text.most:
			return "", fmt.Errorf("%s: the %s text holds %d bytes; at most %d can be deployed", doing, text.what, len(*text.text), text.most)
		case task.SafeText(*text.text, len(*text.text)) != *text.text:
			return "", fmt.Errorf("%s: the %s text is not valid UTF-8 or holds a NUL", doing, text.what)
		}
	}
	id, err := db.push(ctx, a)
	if errors.Is(err, errCommitUnknown) {
		// Only the row itself tells whether it was stored.
		if _, lookErr := db.artifact(ctx, `id = $1`, id.text); lookErr == nil {
			return id.text, nil
		}
	}
	return id.text, wrap(doing, err)
}

// push returns the id of the row also when it cannot tell whether it was stored.
func (db *DB) push(ctx context.Context, a NewArtifact) (rowID, error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return rowID{}, err
	}
	defer conn.Release()
	id, err := newRowID(ctx, conn, "release_artifact")
	if err != nil {
		return rowID{}, err
	}
	row := &copyRow{id: id.binary, artifact: a, digest: sha256.New()}
	_, err = conn.Conn().PgConn().CopyFrom(ctx, row.reader(), `copy release_artifact
		(id, release_version, chart_type, env_data, values_data, is_current, is_previous, artifact_data, sha256)
		from stdin with (format binary)`)
	switch {
	case row.err != nil:
		err = row.err // pgx wraps it in the server's words
	case err != nil && lostConnection(err):
		err = fmt.Errorf("%w: %w", errCommitUnknown, err)
	}
	return id, err
}

// copyRow is one row in COPY's binary format.
type copyRow struct {
	id       []byte
	artifact NewArtifact
	digest   hash.Hash
	err      error
}

// reader returns the stream: header, the fields before the data, the data, and
// its digest, which is known only then.
func (r *copyRow) reader() io.Reader {
	var head bytes.Buffer
	head.WriteString("PGCOPY\n\xff\r\n\x00")
	head.Write(make([]byte, 8)) // no flags, no extension
	_ = binary.Write(&head, binary.BigEndian, int16(9))
	optional := func(s *string) []byte {
		if s == nil {
			return nil
		}
		return []byte(*s)
	}
	a := r.artifact
	for _, value := range [][]byte{
		r.id, []byte(a.Version), []byte(a.ChartType), optional(a.Env), optional(a.Values), {0}, {0}, // false, false
	} {
		length := int32(len(value))
		if value == nil {
			length = -1 // null
		}
		_ = binary.Write(&head, binary.BigEndian, length)
		head.Write(value)
	}
	_ = binary.Write(&head, binary.BigEndian, int32(a.Size))

	data := io.TeeReader(&exactReader{from: a.Data, left: a.Size}, r.digest)
	return &errRecorder{from: io.MultiReader(&head, data, &lazyReader{make: r.tail}), err: &r.err}
}

func (r *copyRow) tail() ([]byte, error) {
	sum := hex.EncodeToString(r.digest.Sum(nil))
	if want := strings.ToLower(strings.TrimSpace(r.artifact.SHA256)); want != "" && want != sum {
		return nil, fmt.Errorf("the file's sha256 is %s, not %s", sum, want)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(sum)))
	b = append(b, sum...)
	return append(b, 0xff, 0xff), nil // the end of the copy
}

// errRecorder keeps the first error that is not the end.
type errRecorder struct {
	from io.Reader
	err  *error
}

func (n *errRecorder) Read(p []byte) (int, error) {
	c, err := n.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && *n.err == nil {
		*n.err = err
	}
	return c, err
}

// exactReader reads left bytes and complains about fewer or more.
type exactReader struct {
	from io.Reader
	left int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.left == 0 {
		var more [1]byte
		switch _, err := io.ReadFull(e.from, more[:]); {
		case err == nil:
			return 0, errors.New("the file grew while it was read")
		case errors.Is(err, io.EOF):
			return 0, io.EOF
		default:
			return 0, err
		}
	}
	n, err := e.from.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if e.left > 0 {
			err = errors.New("the file shrank while it was read")
		}
	}
	return n, err
}

// lazyReader is a reader whose content is made when it is first read.
type lazyReader struct {
	make func() ([]byte, error)
	from *bytes.Reader
}

func (l *lazyReader) Read(p []byte) (int, error) {
	if l.from == nil {
		b, err := l.make()
		if err != nil {
			return 0, err
		}
		l.from = bytes.NewReader(b)
	}
	return l.from.Read(p)
}

// NewTask is a task to add.
type NewTask struct {
	Kind       task.Kind
	ArtifactID *string    // nil: a rollback to the previous release
	At         *time.Time // nil: now, by the database's clock
}

// AddTask adds a pending task and returns its id.
func (db *DB) AddTask(ctx context.Context, t NewTask) (task.ID, error) {
	const doing = "add a task"
	row, err := db.newTaskRow(ctx)
	if err != nil {
		return "", wrap(doing, err)
	}
	id := row.text
	var at *string
	if t.At != nil {
		at = new(t.At.UTC().Format(time.RFC3339Nano))
	}
	// Cut to what the narrowest column holds: rounded up, a task of now would
	// be one of the future.
	n, err := db.exec(ctx, `
		insert into agent_task (id, type, status, release_artifact_id, execute_after, created_at, updated_at)
		overriding system value select $1, $2, 'pending', $3, coalesce($4::timestamptz, date_trunc('milliseconds', clock_timestamp())),
			clock_timestamp(), clock_timestamp()`, id, string(t.Kind), t.ArtifactID, at)
	if err != nil && lostConnection(err) {
		var there string
		if db.row(ctx, []any{&there}, `select id::text from agent_task where id = $1`, id) == nil {
			return task.ID(id), nil
		}
	}
	if err == nil && n == 0 {
		err = pgx.ErrNoRows
	}
	return task.ID(id), wrap(doing, err)
}

func (db *DB) newTaskRow(ctx context.Context) (rowID, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return newRowID(ctx, db.pool, "agent_task")
}
