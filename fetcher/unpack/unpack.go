// Package unpack extracts an artifact, a gzip'd tar archive from a source that
// is not trusted, in one pass and with bounded memory.
//
// Whatever could write outside the target directory, fill the disk or mean
// different things to different programs is refused, not mended: a refused
// artifact was damaged or made by somebody with other intentions, and both
// deserve to be seen. The rules for names and links keep one invariant: every
// directory that leads to an entry was created here and is never a link, so
// that what a name means can be read from the name alone.
package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
)

// Limits bound what an artifact may extract to. All must be positive.
type Limits struct {
	Bytes   int64 // content of all files together, hard links counted like files
	Entries int   // files, directories and links, implied directories included
	Depth   int   // components of a name
	Ratio   int   // bytes extracted per byte of the artifact
}

// Type is what an extracted entry is.
type Type string

// The types of entries. A hard link is a further [TypeFile].
const (
	TypeFile    Type = "file"
	TypeDir     Type = "dir"
	TypeSymlink Type = "symlink"
)

// File is one entry of the extracted tree.
type File struct {
	Path   string      // relative, slash-separated, clean
	Type   Type        //
	Size   int64       // bytes, of files
	Mode   fs.FileMode // permission bits, of files and directories
	UID    int         // owner on disk
	GID    int         // group on disk
	SHA256 string      // lower-case hex, of files
	Target string      // of symbolic links
}

// Summary tells what was read and extracted.
type Summary struct {
	// Files lists every entry below the root, parents before children, and
	// directories the archive only implies as well. It is nil after an error.
	Files []File
	// Root is the directory itself, "." with owner and mode as the archive says or
	// as it was. It is nil after an error.
	Root   *File
	Bytes  int64 // content written
	Packed int64 // bytes read
	// SHA256 is the digest of all bytes read, in lower-case hex; "" when they
	// were not read to their end.
	SHA256 string
}

// Refusal says that the artifact itself is at fault: trying again is no use.
type Refusal struct {
	Entry  string // name in the archive, shortened; "" for the archive as a whole
	Reason string // a predicate: "has an absolute name"
}

func (r *Refusal) Error() string {
	if r.Entry == "" {
		return "artifact " + r.Reason
	}
	return fmt.Sprintf("entry %q %s", r.Entry, r.Reason)
}

func refuse(entry, format string, args ...any) error {
	return &Refusal{Entry: shorten(entry), Reason: fmt.Sprintf(format, args...)}
}

// SourceError is a failure of the reader the artifact came from: it says
// nothing about the artifact or about this host.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return "read artifact: " + e.Err.Error() }

// Unwrap returns the error of the reader.
func (e *SourceError) Unwrap() error { return e.Err }

const (
	bufferSize = 256 << 10 // bytes copied at once
	readSize   = 64 << 10  // bytes asked from the source at once

	// ratioFrom is how much may be extracted before the ratio matters: small
	// archives of repetitive text are legitimate.
	ratioFrom = 16 << 20
	// Beside content an archive holds headers and padding. These bound them, or
	// a stream of headers that announce nothing would be inflated for hours.
	overheadBase, overheadPerEntry = 16 << 20, 4 << 10
	// maxNames bounds the bytes of all names and link targets together: they
	// are what stays in memory.
	maxNames = 8 << 20
)

// Extract reads the artifact from r to its end and extracts it into root, an
// empty directory which the caller owns; packedSize is the size r is expected
// to have, in bytes. When Extract returns without error, everything is flushed
// to the disk except for root's own name.
//
// Owners and modes are what tar makes of them: root gives each entry the numeric
// owner, group and permission bits of the archive, since containers run as those
// users. Any other user owns everything, and may always read and write it; so does
// a root that may not give files away. Bits that grant more (setuid, setgid,
// sticky), times and extended attributes are ignored.
//
// The error is a *[Refusal] when the artifact is at fault; r is then still read
// to its end for the digest. It is a *[SourceError] when r failed, wraps the
// cause of ctx when that ended, and is otherwise a failure of this host. After
// an error root holds what was extracted until then.
func Extract(ctx context.Context, root *os.Root, r io.Reader, packedSize int64, lim Limits) (Summary, error) {
	if lim.Bytes <= 0 || lim.Entries <= 0 || lim.Depth <= 0 || lim.Ratio <= 0 {
		return Summary{}, fmt.Errorf("unpack artifact: every limit must be positive, have %+v", lim)
	}
	x := &extraction{
		ctx: ctx, root: root, lim: lim, packed: packedSize,
		src: newSource(ctx, r), buf: make([]byte, bufferSize), index: make(map[string]int),
		owners: os.Geteuid() == 0,
	}
	err := x.run()
	var refused *Refusal
	if err == nil || errors.As(err, &refused) {
		if derr := x.src.drain(x.buf); derr != nil {
			err = derr
		}
	}
	rootDir := File{Path: ".", Type: TypeDir}
	if err == nil {
		err = x.setRoot(&rootDir)
	}
	if err == nil {
		if err = durable.SyncTree(root, "."); err != nil {
			err = fmt.Errorf("unpack artifact: %w", err)
		}
	}
	sum := Summary{Bytes: x.written, Packed: x.src.n, SHA256: x.src.digest()}
	if err == nil {
		sum.Files, sum.Root = x.files, &rootDir
	}
	return sum, err
}

// extraction is the state of one Extract.
type extraction struct {
	ctx    context.Context
	root   *os.Root
	lim    Limits
	packed int64
	src    *source
	head   []byte // the first bytes of the artifact, at most HeadSize
	stream *inflated
	tr     *tar.Reader
	buf    []byte
	hash   hash.Hash   // of the file being written; reused
	owners bool        // entries get the owners of the archive
	self   *tar.Header // of the directory itself, nil where the archive has none

	files    []File
	climbing []int          // places in files of links to be made when all else is there
	index    map[string]int // path to place in files
	entries  int
	names    int   // bytes of all names
	written  int64 // bytes of all content
	linked   int64 // bytes of what hard links name
}

func (x *extraction) run() error {
	head, _ := x.src.buffered.Peek(HeadSize) // an error comes up again below
	x.head = bytes.Clone(head)
	stream, err := newInflated(x.src.buffered)
	if err != nil {
		return x.readError("", err, true)
	}
	x.stream = stream
	stream.written, stream.overhead = &x.written, overheadBase+int64(x.lim.Entries)*overheadPerEntry
	x.tr = tar.NewReader(x.stream)
	for first := true; ; first = false {
		x.stream.zeros = 0
		hdr, err := x.tr.Next()
		if err == io.EOF { // not errors.Is: a failing source may wrap io.EOF
			return x.finish()
		}
		// The tar reader may be told, by GODEBUG, to object to names itself.
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return x.readError("", err, first)
		}
		if err := x.entry(hdr); err != nil {
			return err
		}
	}
}

// finish checks what follows the last entry: the mark that there are no more,
// padding, the gzip trailer, and nothing else.
func (x *extraction) finish() error {
	if x.stream.n > 0 && x.stream.zeros < 512 {
		return refuse("", "is cut off: the end-of-archive mark is missing")
	}
	for {
		n, err := x.stream.Read(x.buf)
		if n > trailingZeros(x.buf[:n]) {
			return refuse("", "holds data behind its end-of-archive mark, which tar would ignore: archives that were joined have to be packed as one; %s", howToPack)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return x.readError("", err, false)
		}
	}
	if len(x.files) == 0 {
		return refuse("", "holds no entries: an empty directory was packed, or the wrong one")
	}
	return x.makeClimbing()
}

// count accounts for one more entry.
func (x *extraction) count(name string) error {
	if x.entries++; x.entries > x.lim.Entries {
		return refuse(name, "is one too many: an artifact may hold %d entries", x.lim.Entries)
	}
	if err := x.ctx.Err(); err != nil {
		return ctxError(x.ctx)
	}
	return nil
}

// add lists an entry that was created.
func (x *extraction) add(f File) error {
	if x.names += len(f.Path) + len(f.Target); x.names > maxNames {
		return refuse(f.Path, "is too much: all names of an artifact together may take %d bytes", maxNames)
	}
	x.index[f.Path] = len(x.files)
	x.files = append(x.files, f)
	return nil
}

// room checks that more bytes may be written on behalf of name.
func (x *extraction) room(name string, more int64) error {
	if more > x.lim.Bytes-x.written-x.linked {
		return refuse(name, "is too large: an artifact may extract to %d bytes", x.lim.Bytes)
	}
	return nil
}

// expansion checks how far the artifact has expanded so far.
func (x *extraction) expansion(name string) error {
	packed := max(x.packed, x.src.n)
	size := x.written + x.linked
	if size > ratioFrom && (size-1)/int64(x.lim.Ratio) >= packed { // size > ratio * packed
		return refuse(name, "expands too far: an artifact may extract to %d times its size", x.lim.Ratio)
	}
	return nil
}

func ctxError(ctx context.Context) error {
	return fmt.Errorf("unpack artifact: %w", context.Cause(ctx))
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
