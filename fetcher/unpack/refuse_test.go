package unpack

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// hostile is an archive that must be refused, with a part of the reason.
type hostile struct {
	name   string
	packed []byte
	reason string
	lim    func(*Limits)
}

func hostileArchives(t testing.TB) []hostile {
	t.Helper()
	var all []hostile
	add := func(name, reason string, a *archive) {
		all = append(all, hostile{name: name, packed: a.tgz(t), reason: reason})
	}
	limited := func(name, reason string, a *archive, lim func(*Limits)) {
		all = append(all, hostile{name: name, packed: a.tgz(t), reason: reason, lim: lim})
	}
	bytesOf := func(name, reason string, packed []byte) {
		all = append(all, hostile{name: name, packed: packed, reason: reason})
	}
	fresh := func() *archive { return new(archive).file("ok", "fine") }
	regular := byte(tar.TypeReg)

	// Names.
	add("absolute", `entry "/etc/passwd" is refused: its name is absolute`, fresh().file("/etc/passwd", "x"))
	add("dotdot", `has .. in it`, fresh().file("../victim", "x"))
	add("dotdot inside", `has .. in it`, fresh().file("a/../../victim", "x"))
	add("dotdot harmless", `has .. in it`, fresh().file("a/../b", "x"))
	add("dotdot last", `has .. in it`, fresh().dir("a/.."))
	add("empty name", `is empty`, fresh().raw("", regular, "x", nil))
	add("not utf-8", `is not UTF-8`, fresh().raw("a\xffb", regular, "x", nil))
	add("newline", `entry "a\nb" is refused: its name has a control character`, fresh().raw("a\nb", regular, "x", nil))
	add("escape", `control character`, fresh().raw("a\x1b[2J", regular, "x", nil))
	for _, hidden := range []string{"\u200b", "\u200d", "\u2060", "\ufeff", "\u202e", "\u2066", "\u061c", "\u00ad", "\u3164", "\u2028", "\U000e0041"} {
		add(fmt.Sprintf("invisible %U", []rune(hidden)[0]), "is refused: its name has a character that is not seen", fresh().file("comp"+hidden+"ose.yaml", "x"))
	}
	add("invisible in a link", `character that is not seen`, fresh().symlink("l", "o\u200bk"))
	add("invisible in a directory", `character that is not seen`, fresh().dir("d\u202ed/"))
	add("c1 control", `control character`, fresh().file("a\u009bb", "x"))
	add("long component", `a component of more than 255 bytes`, fresh().file(strings.Repeat("n", 256), "x"))
	add("long path", `more than 4095 bytes`, fresh().file(strings.Repeat("n/", 2048)+"n", "x"))
	add("long gnu name", `more than 4095 bytes`, fresh().raw("././@LongLink", tar.TypeGNULongName, strings.Repeat("n", 5000), nil).raw("n", regular, "x", nil))
	add("endless gnu name", `is not valid`, fresh().raw("././@LongLink", tar.TypeGNULongName, strings.Repeat("n", 1<<20+1), nil).raw("n", regular, "x", nil))
	add("endless pax name", `is not valid`, fresh().pax("path", strings.Repeat("n", 1<<20)).raw("n", regular, "x", nil))
	add("deep", `nested deeper than 8 levels`, fresh().file("1/2/3/4/5/6/7/8/9", "x"))
	add("root as file", `stands for the artifact itself`, fresh().raw(".", regular, "x", nil))
	add("file with slash", `has the name of a directory`, fresh().raw("a/", regular, "x", nil))

	// Types.
	add("char device", `entry "null" is a device`, fresh().header(tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""))
	add("block device", `is a device`, fresh().header(tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8}, ""))
	add("fifo", `is a FIFO`, fresh().header(tar.Header{Name: "f", Typeflag: tar.TypeFifo}, ""))
	add("later volume", `unknown type 'M'`, fresh().raw("v", 'M', "", nil))

	// Twice, and below what is no directory.
	add("file twice", `entry "ok" appears twice`, fresh().file("ok", "x"))
	add("file twice, spelled differently", `entry "./ok" appears twice`, fresh().file("./ok", "x"))
	add("directory, then file", `appears twice`, fresh().dir("d/").file("d", "x"))
	add("implied directory, then file", `appears twice`, fresh().file("d/f", "x").file("d", "x"))
	add("file, then directory", `appears twice`, fresh().dir("ok/"))
	add("link, then directory", `appears twice`, fresh().dir("d").symlink("l", "d").dir("l"))
	add("link, then file", `appears twice`, fresh().symlink("l", "ok").file("l", "x"))
	add("below a file", `lies below "ok", which is a file`, fresh().file("ok/f", "x"))
	add("through a link", `entry "l/f" lies below "l", which is a symlink`, fresh().dir("d").symlink("l", "d").file("l/f", "x"))
	add("deep through a link", `lies below "l", which is a symlink`, fresh().dir("d").symlink("l", "d").file("l/a/b", "x"))

	// Links.
	add("absolute symlink", `is a symbolic link to "/etc", which is absolute`, fresh().symlink("l", "/etc"))
	add("symlink up", `leaves the artifact`, fresh().symlink("l", "../victim"))
	add("symlink up from below", `leaves the artifact`, fresh().symlink("d/l", "../../victim"))
	add("symlink down and up", `leaves the artifact`, fresh().symlink("d/l", "a/../../../ok"))
	add("symlink down and up to nothing", `leaves the artifact`, fresh().symlink("d/l", "gone/../../../victim"))
	add("symlink chain", `entry "out" is a symbolic link to "a/b/up/../..", which leaves the artifact`, fresh().dir("a/b").symlink("a/b/up", "..").symlink("out", "a/b/up/../.."))
	add("symlink chain, the other way round", `leaves the artifact`, fresh().symlink("out", "a/b/up/../..").dir("a/b").symlink("a/b/up", ".."))
	add("symlink chain through a directory", `leaves the artifact`, fresh().dir("a/b/c").symlink("s", "a/b/c/up/x").symlink("a/b/c/up", "../../..").symlink("a/out", "../s/../.."))
	add("symlink circle", `in a circle`, fresh().symlink("l", "m/../m").symlink("m", "l/../l"))
	limited("symlinks too long to follow", `takes too long`, manyClimbs(fresh(), 700), func(l *Limits) { l.Entries = 1000 })
	add("symlink to nothing", `is empty`, fresh().raw("l", tar.TypeSymlink, "", nil))
	add("symlink with control character", `control character`, fresh().symlink("l", "a\nb"))
	add("symlink too long", `more than 255 bytes`, fresh().symlink("l", strings.Repeat("n", 300)))
	add("hard link outside", `is a hard link to "../victim", which has .. in it`, fresh().link("h", "../victim"))
	add("absolute hard link", `which is absolute`, fresh().link("h", "/etc/passwd"))
	add("hard link to later file", `which is no earlier file`, fresh().link("h", "later").file("later", "x"))
	add("hard link to directory", `which is no earlier file`, fresh().dir("d").link("h", "d"))
	add("hard link to symlink, lower down", `entry "h" is a symbolic link to "../ok", which leaves`, fresh().symlink("d/l", "../ok").link("h", "d/l"))
	add("hard link through symlink", `which is no earlier file`, fresh().file("d/f", "x").symlink("l", "d").link("h", "l/f"))
	add("hard link to itself", `which is no earlier file`, fresh().link("h", "h"))

	// Sparse files.
	add("gnu sparse", `is a sparse file`, fresh().raw("s", tar.TypeGNUSparse, "", gnuSparse(1<<40, 0)))
	add("pax sparse 0.0", `is a sparse file`, fresh().pax("GNU.sparse.size", "1099511627776", "GNU.sparse.numblocks", "0", "GNU.sparse.major", "0", "GNU.sparse.minor", "0").raw("s", regular, "", nil))
	add("pax sparse 1.0", `is a sparse file`, fresh().pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "s", "GNU.sparse.realsize", "1099511627776").raw("s", regular, "0\n"+strings.Repeat("\x00", 510), nil))
	add("pax sparse of unknown version", `is a sparse file`, fresh().pax("GNU.sparse.major", "9", "GNU.sparse.minor", "9").raw("s", regular, "x", nil))
	// CVE-2025-58183: a sparse map without bound in the data section.
	add("endless pax sparse map", `is not valid`, fresh().pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "s", "GNU.sparse.realsize", "1099511627776").
		raw("s", regular, "99999999\n"+strings.Repeat("0\n0\n", 1<<19), nil))
	// CVE-2026-32288: old GNU sparse headers that go on and on.
	add("endless gnu sparse map", `is not valid`, endlessGNUSparse(fresh()))

	// Limits.
	limited("too many entries", `is one too many`, files(new(archive), 11, "f%d"), func(l *Limits) { l.Entries = 10 })
	limited("too many implied directories", `is one too many`, files(new(archive), 4, "%d/a/b/f"), func(l *Limits) { l.Entries = 12 })
	limited("too many repeated directories", `is one too many`, files(fresh(), 12, "./").file("f", ""), func(l *Limits) { l.Entries = 12 })
	limited("one byte too large", `is too large`, fresh().file("f", strings.Repeat("x", 1001)), func(l *Limits) { l.Bytes = 1000 })
	// Refused before anything is written, not when the stream turns out shorter.
	limited("too large by its header alone", `is too large`, fresh().raw("f", regular, "", func(b []byte) { copy(b[124:], "77777777777") }), nil)
	limited("too large in sum", `is too large`, files(new(archive), 11, "f%d"), func(l *Limits) { l.Bytes = 100 })
	limited("bomb", `expands too far`, new(archive).file("zeros", strings.Repeat("\x00", 20<<20)), nil)
	limited("too large by its hard links", `entry "h2" is too large`, links(new(archive).file("f", strings.Repeat("x", 300)), 5, "f"), func(l *Limits) { l.Bytes = 1000 })
	limited("bomb of hard links", `expands too far`, links(new(archive).file("f", noise(1<<20)), 50, "f"), func(l *Limits) { l.Ratio = 20 })
	limited("headers that announce nothing", `of headers and padding`, manyLongNames(fresh(), 20), func(l *Limits) { l.Entries = 20 })
	limited("padding at the end", `of headers and padding`, fresh().raw("g", tar.TypeXGlobalHeader, "", nil).padding(20<<20), func(l *Limits) { l.Entries = 20 })
	limited("all names together", `is too much`, longLinks(new(archive), 2200), func(l *Limits) { l.Entries = 1 << 20 })

	// Damage.
	good := func() []byte { return fresh().tgz(t) }
	bytesOf("one byte", `is not a gzip'd tar archive`, []byte{0x1f})
	bytesOf("gzip of nothing", `holds no entries`, gzipped(t, nil))
	bytesOf("tar of nothing", `holds no entries`, new(archive).tgz(t))
	bytesOf("tar of its root", `holds no entries`, new(archive).dir("./").tgz(t))
	const appended = `is followed by bytes that are neither gzip nor zeros`
	bytesOf("trailing garbage", appended, append(good(), "trailing garbage"...))
	bytesOf("garbage behind zeros", appended, append(append(good(), make([]byte, 100<<10)...), 'x'))
	bytesOf("gzip behind zeros", appended, append(append(good(), make([]byte, 512)...), good()...))
	bytesOf("two archives", `holds data behind its end-of-archive mark`, append(good(), good()...))
	bytesOf("cut in the trailer", `is cut off`, good()[:len(good())-3])
	bytesOf("cut in the middle", `is cut off`, fresh().file("f", noise(8<<10)).tgz(t)[:5<<10])
	bytesOf("wrong checksum", `its gzip checksum is wrong`, flip(good(), len(good())-8))
	bytesOf("wrong length", `its gzip checksum is wrong`, flip(good(), len(good())-4))
	bytesOf("damaged deflate", `is damaged: flate`, append(fresh().open(t), flip(new(archive).file("f", noise(8<<10)).tgz(t), 10)...))
	bytesOf("tar cut in content", `entry "f" is cut off`, gzipped(t, fresh().file("f", strings.Repeat("x", 2000)).Bytes()[:2048]))
	bytesOf("tar cut in a header", `is cut off`, gzipped(t, fresh().file("f", "x").Bytes()[:1100]))
	bytesOf("no end mark", `end-of-archive mark is missing`, fresh().open(t))
	bytesOf("no end mark after zeros", `end-of-archive mark is missing`, fresh().file("z", strings.Repeat("\x00", 4096)).open(t))
	bytesOf("second archive behind the end", `holds data behind its end-of-archive mark`, func() []byte {
		a := fresh()
		a.Write(make([]byte, 1024))
		return a.file("hidden", "x").tgz(t)
	}())
	bytesOf("wrong header checksum", `is not valid`, func() []byte {
		a := fresh().file("f", "x")
		a.Bytes()[1024+10] ^= 1
		return a.tgz(t)
	}())
	bytesOf("negative size", `is not valid`, fresh().raw("f", regular, "", func(b []byte) {
		b[124] = 0xff
		binary.BigEndian.PutUint64(b[128:], ^uint64(511))
		for i := 124; i < 128; i++ {
			b[i] = 0xff
		}
	}).tgz(t))
	return all
}

func files(a *archive, n int, format string) *archive {
	for i := range n {
		if name := format; strings.Contains(name, "%d") {
			a.file(fmt.Sprintf(format, i), "0123456789")
		} else {
			a.dir(name)
		}
	}
	return a
}

// links adds n hard links, h0 and so on, to target.
func links(a *archive, n int, target string) *archive {
	for i := range n {
		a.link(fmt.Sprint("h", i), target)
	}
	return a
}

// longLinks adds n symbolic links whose targets take 4,000 bytes each.
func longLinks(a *archive, n int) *archive {
	target := strings.Repeat(strings.Repeat("d", 249)+"/", 16)
	for i := range n {
		a.raw("././@LongLink", tar.TypeGNULongLink, target+"\x00", nil)
		a.raw(fmt.Sprint(i), tar.TypeSymlink, "", nil)
	}
	return a
}

// manyLongNames adds names of 1 MiB without an entry that bears them.
func manyLongNames(a *archive, n int) *archive {
	for range n {
		a.raw("././@LongLink", tar.TypeGNULongName, strings.Repeat("n", 1<<20), nil)
	}
	return a
}

// manyClimbs adds n symbolic links that climb in and out of a directory.
func manyClimbs(a *archive, n int) *archive {
	a.dir("d")
	for i := range n {
		a.raw("././@LongLink", tar.TypeGNULongLink, strings.Repeat("d/../", 800)+"\x00", nil)
		a.raw(fmt.Sprint(i), tar.TypeSymlink, "", nil)
	}
	return a
}

func (a *archive) padding(n int) *archive {
	a.Write(make([]byte, n))
	return a
}

func gnuSparse(realSize int64, extended byte) func([]byte) {
	return func(b []byte) {
		copy(b[257:], "ustar  \x00")
		copy(b[386:], "00000000000\x0000000000001\x00")
		b[482] = extended
		copy(b[483:], fmt.Sprintf("%011o\x00", min(realSize, 1<<33-1)))
	}
}

func endlessGNUSparse(a *archive) *archive {
	a.raw("s", tar.TypeGNUSparse, "", gnuSparse(1<<33, 1))
	block := make([]byte, 512)
	for i := range 21 {
		copy(block[i*24:], "00000000000\x0000000000000\x00")
	}
	block[504] = 1
	for range 2 << 20 / 512 {
		a.Write(block)
	}
	return a
}

func flip(b []byte, i int) []byte {
	b[i] ^= 0xff
	return b
}

func TestRefuse(t *testing.T) {
	for _, tt := range hostileArchives(t) {
		t.Run(tt.name, func(t *testing.T) {
			lim := testLimits
			if tt.lim != nil {
				tt.lim(&lim)
			}
			_, err := newSandbox(t).extract(t, tt.packed, lim)
			var refused *Refusal
			if !errors.As(err, &refused) {
				t.Fatalf("got %v, want a Refusal", err)
			}
			if !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("got %q, want it to say %q", err, tt.reason)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 1000 {
				t.Errorf("the reason is not fit for a log line: %q", err)
			}
		})
	}
}
