package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"
	"github.com/zeebo/blake3"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

func imageDumpCommand() *cli.Command {
	return &cli.Command{
		Name:      "dump",
		Usage:     "write all that an image says of its files as lines of text",
		ArgsUsage: "IMAGE",
		Description: "The lines are described in docs/operating.md. A damaged image is shown as far as it can be\n" +
			"read; what cannot is reported and the exit status is 1.",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "digest", Usage: "show the BLAKE3 digest of each file in place of its offset"}},
		Action: onImage(1, 1, imageDump),
	}
}

// superJSON is what a superblock says.
type superJSON struct {
	Dialect    string `json:"dialect"`
	Layer      bool   `json:"layer"`
	Erofs      bool   `json:"erofs"`
	UUID       string `json:"uuid,omitempty"`
	Inodes     uint32 `json:"inodes"`
	TotalSize  uint64 `json:"total_size"`
	Offset     int64  `json:"offset"` // of the superblock in the file
	MetaOffset uint64 `json:"metadata_offset,omitempty"`
	MetaSize   uint64 `json:"metadata_bytes,omitempty"`
}

func (s *source) super() superJSON {
	sb := s.Superblock()
	if !sb.Native() {
		return superJSON{Dialect: "v8", Inodes: sb.InodeCount, TotalSize: sb.TotalSize, Offset: s.origin}
	}
	return superJSON{
		Dialect: "native", Layer: s.IsLayer(), Erofs: s.HasErofs(), UUID: uuid.UUID(sb.UUID).String(), Inodes: sb.InodeCount,
		TotalSize: sb.TotalSize, Offset: s.origin, MetaOffset: uint64(s.origin) + sb.BaseOffset + sb.MetaOffset, MetaSize: sb.MetaSize,
	}
}

func imageDump(c *cli.Context, s *source) error {
	out := bufio.NewWriterSize(c.App.Writer, 64<<10)
	good := true
	bad := func(path string, err error) {
		good = false
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: %s\n", oneLine(s.wrap(path, err)))
	}
	var err error
	if c.Bool("json") {
		err = s.dumpJSON(out, bad)
	} else {
		err = s.dumpText(out, c.Bool("digest"), bad)
	}
	if err == nil {
		err = out.Flush()
	}
	if err == nil && !good {
		err = errBad
	}
	return err
}

// dumpJSON writes the document piece by piece: an image has up to millions of
// entries.
func (s *source) dumpJSON(w io.Writer, bad func(string, error)) error {
	head, err := json.Marshal(struct {
		Image      string    `json:"image"`
		Superblock superJSON `json:"superblock"`
	}{escape(s.name), s.super()})
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s,\n\"entries\":[", head[:len(head)-1])
	comma := "\n"
	err = s.whole(func(it item) error {
		e, err := s.describe(it)
		if err != nil {
			bad(it.path, err)
		}
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s%s", comma, line)
		comma = ",\n"
		return err
	}, bad)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, "\n]}\n")
	return err
}

func (s *source) dumpText(w io.Writer, digest bool, bad func(string, error)) error {
	sb := s.super()
	fmt.Fprintf(w, "# daxfs dump 1: path mode nlink uid gid mtime size device data-or-target xattrs\n")
	fmt.Fprintf(w, "# dialect=%s layer=%t erofs=%t inodes=%d total_size=%d offset=%d metadata=%d+%d uuid=%s\n",
		sb.Dialect, sb.Layer, sb.Erofs, sb.Inodes, sb.TotalSize, sb.Offset, sb.MetaOffset, sb.MetaSize, sb.UUID)
	return s.whole(func(it item) error {
		if it.first != it.path {
			_, err := fmt.Fprintf(w, "%s =%s\n", escapeField(it.path, ""), escapeField(it.first, ""))
			return err
		}
		line, err := s.dumpLine(it, digest)
		if err != nil {
			bad(it.path, err)
		}
		_, err = io.WriteString(w, line+"\n")
		return err
	}, bad)
}

// dumpLine is the line of an inode; with an error, what could be read.
func (s *source) dumpLine(it item, digest bool) (string, error) {
	in := it.in
	length, dev, data := "-", "-", "-"
	var err error
	switch in.Mode & disk.TypeMask {
	case disk.TypeRegular:
		length = fmt.Sprint(in.Size)
		if off, ok := s.dataOffset(in); ok {
			data = fmt.Sprint(off)
		}
		if digest && in.Size > 0 {
			data, err = s.digest(in)
		}
	case disk.TypeSymlink:
		length = fmt.Sprint(in.Size)
		var target string
		target, err = s.Link(in)
		data = escapeField(target, "")
	case disk.TypeChar, disk.TypeBlock:
		dev = device(in.Rdev)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %07o %d %d %d %d.%09d %s %s %s", escapeField(it.path, ""), in.Mode, in.Nlink, in.UID, in.GID,
		in.Mtime, in.MtimeNsec, length, dev, data)
	xs, xerr := s.Xattrs(in)
	for _, x := range xs {
		fmt.Fprintf(&b, " %s=%s", escapeField(x.Name, "="), escapeField(x.Value, ""))
	}
	if err == nil {
		err = xerr
	}
	return b.String(), err
}

// digest hashes a file's bytes.
func (s *source) digest(in *disk.Inode) (string, error) {
	r, err := s.Data(in)
	if err != nil {
		return "-", err
	}
	h := blake3.New()
	if n, err := io.Copy(h, r); err != nil || uint64(n) != in.Size {
		if err == nil {
			err = disk.Corruptf("%d bytes of data, want %d", n, in.Size)
		}
		return "-", err
	}
	return "blake3:" + hex.EncodeToString(h.Sum(nil)), nil
}
