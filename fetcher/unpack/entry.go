package unpack

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

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
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader, typeVolumeLabel:
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
	isDir := hdr.Typeflag == tar.TypeDir || hdr.Typeflag == typeDumpDir
	if name == "." {
		if !isDir {
			return refuse(hdr.Name, "stands for the artifact itself and is not a directory")
		}
		x.self = hdr
		return nil
	}
	if !isDir && strings.HasSuffix(hdr.Name, "/") {
		return refuse(hdr.Name, "has the name of a directory and is none")
	}
	if i, ok := x.index[name]; ok {
		if !isDir || x.files[i].Type != TypeDir {
			return refuse(hdr.Name, "appears twice: programs differ on which one counts; pack it once")
		}
		return x.setDir(&x.files[i], x.attributesOf(hdr))
	}
	if err := x.parents(hdr.Name, name); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont:
		return x.file(hdr, name)
	case tar.TypeDir, typeDumpDir:
		return x.mkdir(name, x.attributesOf(hdr))
	case tar.TypeSymlink:
		return x.symlink(hdr, name, hdr.Linkname)
	case tar.TypeLink:
		return x.link(hdr, name)
	default:
		return refuse(hdr.Name, "is %s", describe(hdr.Typeflag))
	}
}

// Types of GNU tar that archive/tar does not name.
const (
	typeVolumeLabel = 'V' // of tar -V: a name for the archive
	typeDumpDir     = 'D' // of tar -g: a directory; its content lists what it held
)

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

// attributes are owner and permission bits of an entry.
type attributes struct {
	uid, gid int
	perm     fs.FileMode
}

// own is what an entry gets that the archive says nothing about.
func own(perm fs.FileMode) attributes { return attributes{os.Geteuid(), os.Getegid(), perm} }

// attributesOf returns what the archive says; setuid, setgid and sticky are dropped.
func (x *extraction) attributesOf(hdr *tar.Header) attributes {
	a := own(fs.FileMode(hdr.Mode) & fs.ModePerm)
	const most = 1<<32 - 2 // the one above means "as it is" to the kernel
	if x.owners && min(hdr.Uid, hdr.Gid) >= 0 && max(hdr.Uid, hdr.Gid) <= most {
		a.uid, a.gid = hdr.Uid, hdr.Gid
	}
	return a
}

// give gives an entry that is the agent's to its owner, where that is possible: a
// container may deny it to root. It returns what the entry then has; least is what
// an ordinary user needs to work with it.
func (x *extraction) give(a attributes, least fs.FileMode, chown func(uid, gid int) error) (attributes, error) {
	if x.owners && (a.uid != os.Geteuid() || a.gid != os.Getegid()) {
		err := chown(a.uid, a.gid)
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
			x.owners, err = false, nil
		}
		if err != nil {
			return a, err
		}
	}
	if !x.owners {
		a = own(a.perm | least)
	}
	return a, nil
}

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
	return x.mkdir(dir, own(impliedMode))
}

func (x *extraction) mkdir(name string, a attributes) error {
	if err := x.root.Mkdir(name, 0o700); err != nil {
		return hostError(name, err)
	}
	f := File{Path: name, Type: TypeDir}
	if err := x.setDir(&f, a); err != nil {
		return err
	}
	return x.add(f)
}

// setDir gives the directory f owner and mode.
func (x *extraction) setDir(f *File, a attributes) error {
	a, err := x.give(a, 0o700, func(uid, gid int) error { return x.root.Chown(f.Path, uid, gid) })
	if err == nil {
		err = x.root.Chmod(f.Path, a.perm)
	}
	if err != nil {
		return hostError(f.Path, err)
	}
	f.Mode, f.UID, f.GID = a.perm, a.uid, a.gid
	return nil
}

// setRoot gives the directory itself, which f is to describe, what the archive says;
// it is never closed to its own files.
func (x *extraction) setRoot(f *File) error {
	if x.self != nil {
		a := x.attributesOf(x.self)
		a.perm |= impliedMode
		return x.setDir(f, a)
	}
	info, err := x.root.Stat(".")
	if err != nil {
		return hostError(".", err)
	}
	f.Mode, f.UID, f.GID = info.Mode().Perm(), os.Geteuid(), os.Getegid()
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
	a, err := x.give(x.attributesOf(hdr), 0o600, f.Chown)
	if err == nil {
		err = f.Chmod(a.perm)
	}
	if err != nil {
		return hostError(name, err)
	}
	return x.add(File{Path: name, Type: TypeFile, Size: size, Mode: a.perm, UID: a.uid, GID: a.gid, SHA256: sum})
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

// symlink makes a symbolic link at name, which the archive spells entry.
func (x *extraction) symlink(hdr *tar.Header, name, target string) error {
	bad, climbs := badTarget(name, target)
	if bad != "" {
		return refuse(hdr.Name, "is a symbolic link to %q, which %s", shorten(target), bad)
	}
	a := x.attributesOf(hdr)
	f := File{Path: name, Type: TypeSymlink, UID: a.uid, GID: a.gid, Target: strings.Clone(target)}
	if climbs {
		x.climbing = append(x.climbing, len(x.files))
	} else if err := x.makeLink(&f); err != nil {
		return err
	}
	return x.add(f)
}

// makeLink creates the symbolic link f.
func (x *extraction) makeLink(f *File) error {
	if err := x.root.Symlink(f.Target, f.Path); err != nil {
		return hostError(f.Path, err)
	}
	a, err := x.give(attributes{uid: f.UID, gid: f.GID}, 0, func(uid, gid int) error { return x.root.Lchown(f.Path, uid, gid) })
	if err != nil {
		return hostError(f.Path, err)
	}
	f.UID, f.GID = a.uid, a.gid
	return nil
}

func (x *extraction) link(hdr *tar.Header, name string) error {
	target, bad := cleanName(hdr.Linkname, x.lim.Depth)
	if bad != "" {
		return refuse(hdr.Name, "is a hard link to %q, which %s", shorten(hdr.Linkname), bad)
	}
	i, ok := x.index[target]
	if !ok || x.files[i].Type == TypeDir {
		return refuse(hdr.Name, "is a hard link to %q, which is no earlier file of the artifact", shorten(hdr.Linkname))
	}
	f := x.files[i]
	if f.Type == TypeSymlink { // tar keeps a link of two names like that; the second may lie elsewhere
		return x.symlink(hdr, name, f.Target)
	}
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
