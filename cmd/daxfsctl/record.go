package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func recordCommand() *cli.Command {
	return &cli.Command{
		Name:      "record",
		Usage:     "run a command and list the files of an image that are used meanwhile",
		ArgsUsage: "COMMAND [ARG...]",
		Description: "Runs COMMAND, ctr run for one, and notes by fanotify which files with data are opened in our images until\n" +
			"it ends: read, mapped or executed, by whichever process, each once, in the order of first use. Files that\n" +
			"a container wrote are not the image's. The list is one for mkdaxfs --prefetch. Put -- before COMMAND. Its exit\n" +
			"status is passed on; what was recorded is written whatever it is. Needs root.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write the list to `FILE`; without it the list goes to standard output, and what COMMAND prints there to standard error"},
			&cli.StringFlag{Name: "image", Usage: "only the image with this `KEY` (its beginning, as pool ls shows it, or a chain ID)"},
			&cli.StringFlag{Name: "mount", Usage: "only the image that is mounted on `DIR`, by image mount for one"},
		},
		Action: record,
	}
}

// recordingJSON is what was recorded.
type recordingJSON struct {
	Output  string          `json:"output,omitempty"`
	Paths   []string        `json:"paths,omitempty"` // where there is no output
	Files   int             `json:"files"`
	Images  []recordedImage `json:"images"`
	Late    []string        `json:"late,omitempty"` // images whose first files may be missing
	Lost    bool            `json:"lost,omitempty"` // the kernel dropped events
	Unknown int             `json:"unknown,omitempty"`
	Exit    int             `json:"exit_status"` // of the command
}

type recordedImage struct {
	Image string `json:"image"` // its key, or where it is mounted
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
}

func record(c *cli.Context) error {
	if c.NArg() == 0 {
		return usagef("record: want -- %s", c.Command.ArgsUsage)
	}
	if c.IsSet("image") && c.IsSet("mount") {
		return usagef("record: --image and --mount do not go together")
	}
	choose, err := recordChoice(c)
	if err != nil {
		return err
	}
	list, err := newListFile(c.String("output"))
	if err != nil {
		return err
	}
	defer list.discard()
	r, err := newRecorder(choose)
	if err != nil {
		return err
	}
	defer shut(r)

	stdout := c.App.Writer
	if list == nil || c.Bool("json") {
		stdout = c.App.ErrWriter
	}
	done := make(chan error, 1)
	go func() { done <- r.run() }()
	status, err := runCommand(c.Args().Slice(), stdout, c.App.ErrWriter)
	r.end()
	if failed := <-done; err == nil {
		err = failed
	}
	if err == nil {
		err = finishRecord(c, r, list, status)
	}
	if status != 0 {
		if err != nil {
			fmt.Fprintf(c.App.ErrWriter, "daxfsctl: %s\n", oneLine(err))
		}
		return status
	}
	return err
}

// recordChoice tells which mounted images to record.
func recordChoice(c *cli.Context) (func(dir string) (string, bool), error) {
	if dir := c.String("mount"); c.IsSet("mount") {
		abs, err := filepath.Abs(dir)
		if err == nil {
			abs, err = filepath.EvalSymlinks(abs)
		}
		if err != nil {
			return nil, err
		}
		if !engine.Mounted(abs) {
			return nil, fmt.Errorf("%s: no image is mounted there: %w", escape(abs), errdefs.ErrFailedPrecondition)
		}
		return func(at string) (string, bool) { return abs, at == abs }, nil
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return nil, err
	}
	key := strings.TrimPrefix(c.String("image"), poolPrefix)
	if strings.HasPrefix(key, "sha256:") {
		s, err := openPoolImage(c.Context, cfg, key)
		if err != nil {
			return nil, err
		}
		key = strings.TrimPrefix(s.name, poolPrefix)
		s.Close()
	}
	if strings.Trim(key, "0123456789abcdef") != "" || c.IsSet("image") && key == "" {
		return nil, usagef("--image %s: want the beginning of a key in hexadecimal, or of a chain ID (sha256:...)", escape(c.String("image")))
	}
	root, err := filepath.Abs(cfg.Root)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return nil, fmt.Errorf("find the daemon's images: %w", err)
	}
	images := filepath.Join(root, "images")
	return func(at string) (string, bool) {
		name := filepath.Base(filepath.Dir(at))
		return name, filepath.Dir(filepath.Dir(at)) == images && strings.HasPrefix(name, key)
	}, nil
}

// finishRecord writes the list and says what is in it.
func finishRecord(c *cli.Context, r *recorder, list *listFile, status exitStatus) error {
	paths := r.paths()
	res := &recordingJSON{Files: len(paths), Images: r.images(), Late: r.late, Lost: r.lost, Unknown: r.unknown, Exit: int(status)}
	warn := func(format string, args ...any) {
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: warning: "+format+"\n", args...)
	}
	if len(res.Late) > 0 {
		warn("the first files may be missing, the image may have been in use before it was watched: record again while a container of it runs")
	}
	if res.Lost {
		warn("the kernel had no memory for all events, files may be missing")
	}
	if res.Unknown > 0 {
		warn("%s of files whose path could not be told", plural(res.Unknown, "use"))
	}
	if len(res.Images) > 1 {
		warn("files of %d images are in the list, --image KEY chooses one", len(res.Images))
	}
	if len(paths) == 0 {
		return fmt.Errorf("no file of an image was used while the command ran, no list was written: %w", errdefs.ErrNotFound)
	}
	switch {
	case list != nil:
		if err := list.commit(paths); err != nil {
			return err
		}
		res.Output = escape(list.path)
	case c.Bool("json"):
		for _, p := range paths {
			res.Paths = append(res.Paths, escape(p))
		}
	default:
		if err := mkdaxfs.WritePrefetch(c.App.Writer, paths); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, res)
	}
	for _, i := range res.Images {
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: recorded %s of image %s, %s\n", plural(i.Files, "file"), escape(i.Image), size(i.Bytes))
	}
	return nil
}

// listFile is the file for a list, which appears when the list is there.
type listFile struct {
	*os.File
	path string
}

// newListFile makes a file beside path; nil if there is no path.
func newListFile(path string) (*listFile, error) {
	if path == "" {
		return nil, nil
	}
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("output %s: not a regular file: %w", escape(path), errdefs.ErrInvalidArgument)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", escape(path), errors.Unwrap(err))
	}
	return &listFile{f, path}, nil
}

func (l *listFile) commit(paths []string) error {
	if err := mkdaxfs.WritePrefetch(l, paths); err != nil {
		return err
	}
	if err := l.Chmod(0o644); err != nil {
		return err
	}
	if err := l.Close(); err != nil {
		return fmt.Errorf("write %s: %w", escape(l.path), err)
	}
	return os.Rename(l.Name(), l.path)
}

// discard closes the file and removes what commit has not given its name.
func (l *listFile) discard() {
	if l != nil {
		l.Close()
		os.Remove(l.Name())
	}
}
