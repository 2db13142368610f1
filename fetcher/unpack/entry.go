package unpack

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
)

// Mode of directories that the archive implies but does not list. Others may
// enter: containers that bind-mount the tree run as other users. The staging
// directory above is closed to everybody else.
const impliedMode = 0o755

// entry extracts the entry that hdr announces.
func (x *extraction) entry(hdr *tar.Header) error {
	if err := x.count(hdr.Name); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // comments, such as the commit that git archive notes
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return refuse(hdr.Name, "is a sparse file")
		}
	}
	name, bad := cleanName(hdr.Name, x.lim.Depth)
	if bad != "" {
		return refuse(hdr.Name, "is refused: its name %s", bad)
	}
	isDir := hdr.Typeflag == tar.TypeDir
	if name == "." {
		if !isDir {
			return refuse(hdr.Name, "stands for the artifact itself and is not a directory")
		}
		return nil
	}
	if !isDir && strings.HasSuffix(hdr.Name, "/") {
		return refuse(hdr.Name, "has the name of a directory and is none")
	}
	if i, ok := x.index[name]; ok {
		if !isDir || x.files[i].Type != TypeDir {
			return refuse(hdr.Name, "appears twice")
		}
		return x.chmodDir(i, hdr)
	}
	if err := x.parents(hdr.Name, name); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeReg:
		return x.file(hdr, name)
	case tar.TypeDir:
		return x.mkdir(name, permOf(hdr))
	case tar.TypeSymlink:
		return x.symlink(hdr, name)
	case tar.TypeLink:
		return x.link(hdr, name)
	default:
		return refuse(hdr.Name, "is %s", describe(hdr.Typeflag))
	}
}

func describe(typeflag byte) string {
	switch typeflag {
	case tar.TypeChar, tar.TypeBlock:
		return "a device"
	case tar.TypeFifo:
		return "a FIFO"
	case tar.TypeGNUSparse:
		return "a sparse file"
	default:
		return fmt.Sprintf("of the unknown type %q", typeflag)
	}
}

// permOf returns the permission bits of an entry; setuid, setgid and sticky are
// dropped.
func permOf(hdr *tar.Header) fs.FileMode { return fs.FileMode(hdr.Mode) & fs.ModePerm }

// parents creates the directories above name that are still missing, and
// refuses an entry below anything but a directory.
func (x *extraction) parents(entry, name string) error {
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}
	if i, ok := x.index[dir]; ok {
		if t := x.files[i].Type; t != TypeDir {
			return refuse(entry, "lies below %q, which is a %s", shorten(dir), t)
		}
		return nil
	}
	if err := x.parents(entry, dir); err != nil {
		return err
	}
	if err := x.count(entry); err != nil {
		return err
	}
	return x.mkdir(dir, impliedMode)
}

func (x *extraction) mkdir(name string, perm fs.FileMode) error {
	perm |= 0o700
	if err := x.root.Mkdir(name, 0o700); err != nil {
		return hostError(name, err)
	}
	if err := x.root.Chmod(name, perm); err != nil {
		return hostError(name, err)
	}
	return x.add(File{Path: name, Type: TypeDir, Mode: perm})
}

// chmodDir applies a repeated, or late, entry of a directory.
func (x *extraction) chmodDir(i int, hdr *tar.Header) error {
	f := &x.files[i]
	f.Mode = permOf(hdr) | 0o700
	if err := x.root.Chmod(f.Path, f.Mode); err != nil {
		return hostError(f.Path, err)
	}
	return nil
}

func (x *extraction) file(hdr *tar.Header, name string) (err error) {
	if err := x.room(hdr.Name, hdr.Size); err != nil {
		return err
	}
	if err := fault.Point("unpack.create:" + name); err != nil {
		return hostError(name, err)
	}
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return hostError(name, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = hostError(name, cerr)
		}
	}()
	size, sum, err := x.content(f, hdr.Name)
	if err != nil {
		return err
	}
	perm := permOf(hdr) | 0o600
	if err := f.Chmod(perm); err != nil {
		return hostError(name, err)
	}
	return x.add(File{Path: name, Type: TypeFile, Size: size, Mode: perm, SHA256: sum})
}

// content copies the current entry's content to f. Limits hold for what is
// written, whatever a header promised.
func (x *extraction) content(f *os.File, entry string) (size int64, sum string, err error) {
	if x.hash == nil {
		x.hash = sha256.New()
	}
	x.hash.Reset()
	for {
		// Filled completely: the tar reader hands out much smaller pieces.
		n, rerr := 0, error(nil)
		for n < len(x.buf) && rerr == nil {
			var m int
			m, rerr = x.tr.Read(x.buf[n:])
			n += m
		}
		if err := x.room(entry, int64(n)); err != nil {
			return 0, "", err
		}
		if err := x.ctx.Err(); err != nil {
			return 0, "", ctxError(x.ctx)
		}
		if n > 0 {
			if err := fault.Point("unpack.write:" + entry); err != nil {
				return 0, "", hostError(entry, err)
			}
			if _, err := f.Write(x.buf[:n]); err != nil {
				return 0, "", hostError(entry, err)
			}
			x.hash.Write(x.buf[:n])
			x.written += int64(n)
			size += int64(n)
		}
		if err := x.expansion(entry); err != nil {
			return 0, "", err
		}
		if rerr == io.EOF {
			return size, hexSum(x.hash), nil
		}
		if rerr != nil {
			return 0, "", x.readError(entry, rerr, false)
		}
	}
}

func (x *extraction) symlink(hdr *tar.Header, name string) error {
	if bad := badTarget(name, hdr.Linkname); bad != "" {
		return refuse(hdr.Name, "is a symbolic link to %q, which %s", shorten(hdr.Linkname), bad)
	}
	target := strings.Clone(hdr.Linkname)
	if err := x.root.Symlink(target, name); err != nil {
		return hostError(name, err)
	}
	return x.add(File{Path: name, Type: TypeSymlink, Target: target})
}

func (x *extraction) link(hdr *tar.Header, name string) error {
	target, bad := cleanName(hdr.Linkname, x.lim.Depth)
	if bad != "" {
		return refuse(hdr.Name, "is a hard link to %q, which %s", shorten(hdr.Linkname), bad)
	}
	i, ok := x.index[target]
	if !ok || x.files[i].Type != TypeFile {
		return refuse(hdr.Name, "is a hard link to %q, which is no earlier file of the artifact", shorten(hdr.Linkname))
	}
	f := x.files[i]
	// Whoever copies the tree later writes each link as a file of its own.
	if err := x.room(hdr.Name, f.Size); err != nil {
		return err
	}
	x.linked += f.Size
	if err := x.expansion(hdr.Name); err != nil {
		return err
	}
	if err := x.root.Link(target, name); err != nil {
		return hostError(name, err)
	}
	f.Path = name
	return x.add(f)
}

func hostError(name string, err error) error {
	return fmt.Errorf("extract %q: %w", shorten(name), err)
}
