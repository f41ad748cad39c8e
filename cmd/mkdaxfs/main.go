// Command mkdaxfs builds a self-contained DAXFS image from a directory, a tar
// archive or an OCI image layout, and checks images.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// usageError is an error about the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// streams are what a command talks to.
type streams struct {
	in       *os.File
	out, err io.Writer
}

func run(ctx context.Context, args []string, stdin *os.File, stdout, stderr io.Writer) int {
	app := newApp(streams{stdin, stdout, stderr})
	args, err := permute(app.Flags, args)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "mkdaxfs: %v (see mkdaxfs --help)\n", oneLine(err))
		return exitUsage
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "mkdaxfs: interrupted, nothing was written")
		return exitError
	}
	fmt.Fprintf(stderr, "mkdaxfs: %v\n", oneLine(err))
	return exitError
}

func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
}

func newApp(std streams) *cli.App {
	return &cli.App{
		Name:      "mkdaxfs",
		Usage:     "build and check DAXFS images",
		UsageText: "mkdaxfs [options] -o IMAGE {-d DIR | --tar FILE | --oci DIR[:REF] | SOURCE}\nmkdaxfs [--json] --check IMAGE",
		Description: "Builds a read-only image of a file tree. SOURCE without an option is a directory, an\n" +
			"OCI layout directory, a tar file, or - for a tar on standard input. SOURCE_DATE_EPOCH is\n" +
			"the latest modification time that files get.",
		HideHelpCommand: true,
		HideVersion:     true,
		Reader:          std.in,
		Writer:          std.out,
		ErrWriter:       std.err,
		OnUsageError:    func(_ *cli.Context, err error, _ bool) error { return usageError{err} },
		ExitErrHandler:  func(*cli.Context, error) {},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "d", Aliases: []string{"directory"}, Usage: "build from the directory `DIR`"},
			&cli.StringFlag{Name: "tar", Usage: "build from the tar `FILE` (plain, gzip or zstd; - is standard input)"},
			&cli.StringFlag{Name: "oci", Usage: "build from the OCI image layout `DIR[:REF]`, its layers flattened; REF is a name or digest"},
			&cli.StringFlag{Name: "platform", Usage: "with --oci: `OS/ARCH[/VARIANT]` to choose (default: this machine's)"},
			&cli.StringFlag{Name: "o", Aliases: []string{"output"}, Usage: "write the image to `IMAGE`, replacing it when all is done"},
			&cli.StringFlag{Name: "s", Aliases: []string{"size"}, Usage: "make the image file `SIZE` bytes large (suffixes K, M, G; default: as needed)"},
			&cli.StringFlag{Name: "compat", Usage: "`v8`: write the dialect of the public module"},
			&cli.BoolFlag{Name: "drop", Usage: "leave out, and report, what the image cannot hold"},
			&cli.BoolFlag{Name: "no-erofs", Usage: "leave out the EROFS view"},
			&cli.BoolFlag{Name: "share", Usage: "store equal files once (not for EROFS with DAX)"},
			&cli.StringFlag{Name: "prefetch", Usage: "lay the files that `FILE` lists (one path in the image a line, as daxfsctl record writes them) first and together, in its order"},
			&cli.StringFlag{Name: "check", Usage: "check `IMAGE` instead of building one"},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print errors only"},
		},
		Action: func(c *cli.Context) error {
			if c.IsSet("check") {
				return runCheck(c, std)
			}
			cfg, err := parse(c)
			if err != nil {
				return err
			}
			return runBuild(c.Context, cfg, std)
		},
	}
}
