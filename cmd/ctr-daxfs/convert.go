package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/cmd/ctr/commands"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/platforms"
	"github.com/urfave/cli/v3"

	"github.com/daxfs/containerd-daxfs/imageconvert"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// ours are the flags that mean something with --daxfs only.
var ours = []string{"daxfs-compression", "daxfs-level", "index", "prefetch", "temp-dir"}

// extendConvert adds --daxfs and its flags to ctr's command. Without it the
// command is what it was.
func extendConvert(cmd *cli.Command) {
	cmd.Flags = append(cmd.Flags,
		&cli.BoolFlag{Name: "daxfs", Usage: "Flatten all layers into one DAXFS image"},
		&cli.StringFlag{Name: "daxfs-compression", Usage: "How the DAXFS image is compressed: 'none' or 'zstd'", Value: string(imageconvert.None)},
		&cli.IntFlag{Name: "daxfs-level", Usage: "zstd level, 1 to 22", Value: 3},
		&cli.BoolFlag{Name: "index", Usage: "Make an index of the ordinary image and the DAXFS one, whose platform has os.features daxfs"},
		&cli.StringFlag{Name: "prefetch", Usage: "File with a list of hot files, which lie first in the image (daxfsctl record)"},
		&cli.StringFlag{Name: "temp-dir", Usage: "Directory of a temporary file as large as the unpacked image (default: $TMPDIR or /tmp)"},
	)
	cmd.Description += `
      ctr-daxfs image convert --daxfs --daxfs-compression zstd example.com/foo:orig example.com/foo:daxfs

Use '--daxfs' to flatten all layers into one DAXFS image, which snapshotter daxfs
unpacks at once and runs like any other:

      ctr-daxfs run --snapshotter daxfs example.com/foo:daxfs name
`
	stock := cmd.Action
	cmd.Action = func(ctx context.Context, cmd *cli.Command) error {
		if cmd.Bool("daxfs") {
			return interruptible(toDaxfs)(ctx, cmd)
		}
		for _, name := range ours {
			if cmd.IsSet(name) {
				return fmt.Errorf("--%s is for --daxfs", name)
			}
		}
		return stock(ctx, cmd)
	}
}

func toDaxfs(ctx context.Context, cmd *cli.Command) error {
	var others []string
	for _, f := range cmd.Flags {
		name := f.Names()[0]
		if cmd.IsSet(name) && !slices.Contains(append(ours, "daxfs", "platform", "all-platforms", "oci"), name) {
			others = append(others, "--"+name)
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("%s and --daxfs exclude each other", strings.Join(others, ", "))
	}
	o, err := options(cmd)
	if err != nil {
		return err
	}
	o.Compression = imageconvert.Compression(cmd.String("daxfs-compression"))
	o.ZstdLevel = cmd.Int("daxfs-level")
	o.Index = cmd.Bool("index")
	if name := cmd.String("prefetch"); name != "" {
		if o.Prefetch, err = mkdaxfs.ReadPrefetchFile(name); err != nil {
			return err
		}
	}
	return convert(ctx, cmd, imageconvert.ToDaxfs(o))
}

// exportCommand is "images export-oci".
func exportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export-oci",
		Usage:     "Convert a DAXFS image back into one with an ordinary layer",
		ArgsUsage: "[flags] <source_ref> <target_ref>",
		Description: `Make one tar layer of a DAXFS image, so that any snapshotter can run it.

e.g., 'ctr-daxfs image export-oci --compression zstd example.com/foo:daxfs example.com/foo:tar'
`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "compression", Usage: "How the layer is compressed: 'none', 'gzip' or 'zstd'", Value: string(imageconvert.Gzip)},
			&cli.StringFlag{Name: "temp-dir", Usage: "Directory of a temporary file as large as the unpacked image, for a compressed one (default: $TMPDIR or /tmp)"},
			&cli.StringSliceFlag{Name: "platform", Usage: "Convert the image of a specific platform"},
			&cli.BoolFlag{Name: "all-platforms", Usage: "Convert the images of all platforms"},
		},
		DisableSliceFlagSeparator: true,
		Action: interruptible(func(ctx context.Context, cmd *cli.Command) error {
			o, err := options(cmd)
			if err != nil {
				return err
			}
			o.Compression = imageconvert.Compression(cmd.String("compression"))
			return convert(ctx, cmd, imageconvert.ToTar(o))
		}),
	}
}

// options are what both commands have in common.
func options(cmd *cli.Command) (o imageconvert.Options, err error) {
	o.SpoolDir = cmd.String("temp-dir")
	names := cmd.StringSlice("platform")
	switch {
	case cmd.Bool("all-platforms") && len(names) > 0:
		return o, errors.New("--platform and --all-platforms exclude each other")
	case cmd.Bool("all-platforms"):
		o.Platform = platforms.All
	case len(names) > 0:
		all, err := platforms.ParseAll(names)
		if err != nil {
			return o, err
		}
		o.Platform = platforms.Ordered(all...)
	}
	return o, nil
}

// convert makes the second image of the first and prints its digest.
func convert(ctx context.Context, cmd *cli.Command, f converter.ConvertFunc) error {
	src, dst := cmd.Args().Get(0), cmd.Args().Get(1)
	if src == "" || dst == "" || cmd.Args().Len() > 2 {
		return fmt.Errorf("%d arguments, want two: the source image and the target image", cmd.Args().Len())
	}
	client, ctx, cancel, err := commands.NewClient(ctx, cmd)
	if err != nil {
		return err
	}
	defer cancel()
	img, err := converter.Convert(ctx, client, dst, src, converter.WithIndexConvertFunc(f))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.Writer, img.Target.Digest)
	return err
}
