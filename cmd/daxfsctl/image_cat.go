package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

func imageCatCommand() *cli.Command {
	return &cli.Command{
		Name:      "cat",
		Usage:     "write a file of an image to standard output",
		ArgsUsage: "IMAGE PATH",
		Action:    onImage(2, 2, imageCat),
	}
}

func imageCat(c *cli.Context, s *source) error {
	path := c.Args().Get(1)
	in, err := s.lookup(path, true)
	if err != nil {
		return err
	}
	if in.Mode&disk.TypeMask != disk.TypeRegular {
		return fmt.Errorf("%s: /%s: is no regular file (%s)", escape(s.name), escape(innerPath(path)), typeName(in.Mode))
	}
	r, err := s.Data(in)
	if err != nil {
		return s.wrap(path, err)
	}
	if c.Bool("json") {
		return catJSON(c.App.Writer, s, path, r)
	}
	n, err := io.Copy(c.App.Writer, r)
	if err == nil && uint64(n) != in.Size {
		err = s.wrap(path, disk.Corruptf("%d bytes of data, want %d", n, in.Size))
	}
	return err
}

// catJSON has the content as text, or as base64 where it is not UTF-8.
func catJSON(w io.Writer, s *source, path string, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return s.wrap(path, err)
	}
	res := struct {
		Image    string `json:"image"`
		Path     string `json:"path"`
		Encoding string `json:"encoding"` // "utf-8" or "base64"
		Content  string `json:"content"`
	}{escape(s.name), "/" + escape(innerPath(path)), "utf-8", string(b)}
	if !utf8.Valid(b) || strings.ContainsRune(res.Content, 0) {
		res.Encoding, res.Content = "base64", base64.StdEncoding.EncodeToString(b)
	}
	return printJSON(w, res)
}
