// Command daxfsctl looks into DAXFS images and the pool of
// containerd-daxfs-grpc, collects garbage, and says what a host can do.
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

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/version"
)

// Exit codes.
const (
	exitOK    = 0
	exitBad   = 1 // an error, or what was looked at is not as it should be
	exitUsage = 2
)

// errBad ends a command whose result is bad and has been printed.
var errBad = errors.New("bad result")

// usageError is an error about the command line.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	// What the packages log is for the daemon's journal.
	logrus.SetOutput(io.Discard)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	args, err := arrange(app, args)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	var usage usageError
	var status exitStatus
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "daxfsctl: %s (daxfsctl help says more)\n", oneLine(err))
		return exitUsage
	case errors.Is(err, errBad):
		return exitBad
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "daxfsctl: interrupted")
		return exitBad
	case errors.Is(err, syscall.EPIPE): // daxfsctl … | head
		return exitBad
	}
	fmt.Fprintf(stderr, "daxfsctl: %s\n", oneLine(err))
	return exitBad
}

func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
}

const description = `IMAGE is an image in a file, a block device or memory (phys:ADDRESS,size=SIZE) from
--offset on, or pool:KEY for an image or layer of the pool, where KEY is the beginning
of its key as "pool ls" shows it, or a chain ID (sha256:...).

Options may stand anywhere. --config, --root, --pool and --address say where the
daemon's things are; without them its configuration file does. Every verb has --json.
Exit status: 0 good, 1 bad result or error, 2 wrong usage.`

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:           "daxfsctl",
		Usage:          "look into DAXFS images and their pool",
		UsageText:      "daxfsctl image VERB IMAGE ...\ndaxfsctl pool VERB ...\ndaxfsctl lease VERB ...\ndaxfsctl top\ndaxfsctl record [-o FILE] -- COMMAND ...\ndaxfsctl doctor",
		Description:    description,
		Version:        version.String(),
		Writer:         stdout,
		ErrWriter:      stderr,
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return usageError{err} },
		ExitErrHandler: func(*cli.Context, error) {},
		Action:         needVerb,
		Commands: []*cli.Command{
			{Name: "image", Usage: "look into one image, or mount it", Subcommands: []*cli.Command{
				imageCheckCommand(), imageDumpCommand(), imageLsCommand(), imageCatCommand(),
				imageStatCommand(), imageExtractCommand(), imageDiffCommand(),
				imageMountCommand(), imageUnmountCommand(), imageHandoffCommand(),
			}},
			{Name: "pool", Usage: "make the pool, look into it, and clean it up", Subcommands: []*cli.Command{
				poolCreateCommand(), poolStatCommand(), poolLsCommand(), poolCheckCommand(), poolScrubCommand(), poolGCCommand(),
			}},
			{Name: "lease", Usage: "see which kernels are at the pool", Subcommands: []*cli.Command{
				leaseLsCommand(), leaseEvictCommand(),
			}},
			topCommand(), recordCommand(), doctorCommand(),
		},
	}
	for _, c := range app.Commands[0].Subcommands {
		if strings.HasPrefix(c.ArgsUsage, "IMAGE") {
			c.Flags = append(c.Flags, &cli.Int64Flag{Name: "offset", Usage: "where in a file, device or memory the image begins, in `BYTES`"})
		}
	}
	finish(app.Commands)
	return app
}

// finish gives every command what all have.
func finish(cmds []*cli.Command) {
	for _, c := range cmds {
		c.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return usageError{err} }
		if len(c.Subcommands) > 0 {
			c.Action = needVerb
			finish(c.Subcommands)
			continue
		}
		c.HideHelpCommand = true
		c.UseShortOptionHandling = true // ls -lR
		c.Flags = append(c.Flags, commonFlags()...)
	}
}

// needVerb runs where a command line stops before a verb.
func needVerb(c *cli.Context) error {
	cmds := c.App.Commands
	if c.Command != nil && len(c.Command.Subcommands) > 0 {
		cmds = c.Command.Subcommands
	}
	var names []string
	for _, s := range cmds {
		if s.Name != "help" {
			names = append(names, s.Name)
		}
	}
	have := strings.Join(names, ", ")
	if c.Args().Present() {
		return usagef("unknown verb %q, have %s", c.Args().First(), have)
	}
	return usagef("no verb, have %s", have)
}

func commonFlags() []cli.Flag {
	const category = "COMMON"
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print one JSON document", Category: category},
		&cli.StringFlag{Name: "config", Usage: "the daemon's configuration `FILE`", Value: config.DefaultPath, EnvVars: []string{"CONTAINERD_DAXFS_CONFIG"}, Category: category},
		&cli.StringFlag{Name: "root", Usage: "`DIR` of snapshots and metadata", Category: category},
		&cli.StringFlag{Name: "pool", Usage: "`PLACE` of the pool: a file, /dev/pmemN, or phys:ADDRESS,size=SIZE", Category: category},
		&cli.StringFlag{Name: "address", Usage: "the daemon's unix `SOCKET`", Category: category},
	}
}

// loadConfig is the daemon's configuration with the command line's changes.
func loadConfig(c *cli.Context) (*config.Config, error) {
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		return nil, err
	}
	for flag, field := range map[string]*string{"root": &cfg.Root, "pool": &cfg.Pool.Path, "address": &cfg.Address} {
		if c.IsSet(flag) {
			*field = c.String(flag)
		}
	}
	return cfg, cfg.Check()
}

// arguments checks how many arguments there are.
func arguments(c *cli.Context, atLeast, atMost int) error {
	switch n := c.NArg(); {
	case n < atLeast:
		return usagef("%s: want %s", c.Command.Name, c.Command.ArgsUsage)
	case n > atMost:
		return usagef("%s: unexpected argument %q", c.Command.Name, c.Args().Get(atMost))
	}
	return nil
}
