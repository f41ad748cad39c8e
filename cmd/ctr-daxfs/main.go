// Command ctr-daxfs is containerd's ctr with two things more: "images convert
// --daxfs" makes an image's layers one DAXFS image, "images export-oci" makes an
// ordinary layer of one again (docs/image-spec.md).
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/urfave/cli/v3"
)

func main() {
	if err := run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "ctr-daxfs:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	root := app.New()
	root.Name = "ctr-daxfs"
	if err := extend(root); err != nil {
		return err
	}
	return root.Run(ctx, args)
}

// extend adds our commands and flags to ctr's.
func extend(root *cli.Command) error {
	images := root.Command("images")
	if images == nil {
		return fmt.Errorf("this version of ctr has no command %q", "images")
	}
	convert := images.Command("convert")
	if convert == nil {
		return fmt.Errorf("this version of ctr has no command %q", "images convert")
	}
	extendConvert(convert)
	images.Commands = append(images.Commands, exportCommand())
	return nil
}

// interruptible ends a command's context at the first signal, so that what it has
// begun in the content store is removed; a second one ends the program. ctr's own
// commands keep their ways.
func interruptible(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop)
		return action(ctx, cmd)
	}
}
