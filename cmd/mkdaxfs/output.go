package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// output is a file that appears under its name when it is complete, and leaves
// nothing behind otherwise.
type output struct {
	*os.File
	path string // final name
	temp string // present name, "" while the file has none
}

// newOutput opens a file without a name, where the file system has such, in
// the directory of path.
func newOutput(path string) (*output, error) {
	// What a symlink points to is replaced, not the link.
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("output %s: not a regular file", path)
	}
	o := &output{path: path}
	// The name is for messages and for the builder's spool file beside it.
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err == nil {
		o.File = os.NewFile(uintptr(fd), path)
		return o, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	o.temp = o.tempName()
	fd, err = unix.Open(o.temp, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	o.File = os.NewFile(uintptr(fd), path)
	return o, nil
}

func (o *output) tempName() string {
	return filepath.Join(filepath.Dir(o.path), "."+filepath.Base(o.path)+"."+rand.Text()[:10])
}

// commit makes the file durable and gives it its name.
func (o *output) commit() error {
	if err := o.Sync(); err != nil {
		return err
	}
	if o.temp == "" {
		// linkat cannot replace a file, rename can.
		temp := o.tempName()
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", o.Fd()), unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW); err != nil {
			return fmt.Errorf("name the finished image %s: %w", temp, err)
		}
		o.temp = temp
	}
	if err := os.Rename(o.temp, o.path); err != nil {
		return err
	}
	o.temp = ""
	return nil
}

// discard closes the file and removes what commit has not given its name.
func (o *output) discard() {
	o.Close()
	if o.temp != "" {
		os.Remove(o.temp)
	}
}
