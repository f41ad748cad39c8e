package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"
)

func imageHandoffCommand() *cli.Command {
	return &cli.Command{
		Name:      "handoff",
		Usage:     "print what another kernel needs to have an image as its root file system",
		ArgsUsage: "IMAGE",
		Description: "For a kernel that has the same memory at the same address (--kernel-cmdline), and for a VM that gets a\n" +
			"file's memory from QEMU (--qemu). Both need an initrd with the module: script/initramfs-tools. The image is\n" +
			"checked first. Nothing is changed, and nothing pins the image.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "kernel-cmdline", Usage: "print the kernel's command line"},
			&cli.BoolFlag{Name: "qemu", Usage: "print QEMU's arguments, for a shell"},
			&cli.StringFlag{Name: "engine", Usage: "`ENGINE` that mounts it there, daxfs or erofs-dax (default: the first that can)"},
			&cli.StringFlag{Name: "append", Usage: "add `WORDS` to the command line"},
			&cli.BoolFlag{Name: "writable", Usage: "let the VM write to the memory, which a daemon of its own needs"},
		},
		Action: imageHandoff,
	}
}

type handoffJSON struct {
	Image  string `json:"image"`
	Region struct {
		Kind    string `json:"kind"`
		Path    string `json:"path"`
		Address uint64 `json:"address"` // 0: none
		Size    int64  `json:"size"`
	} `json:"region"`
	Offset int64  `json:"offset"` // of the superblock in the region
	Ways   []*way `json:"ways"`   // best first
	Keep   string `json:"keep"`   // what is needed for the image to stay
}

func imageHandoff(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	to, err := handoffTo(c)
	if err != nil {
		return err
	}
	s, err := openSource(c, c.Args().First())
	if err != nil {
		return err
	}
	defer s.Close()
	if s.IsLayer() {
		return fmt.Errorf("%s: a layer cannot be handed out, an image can: %w", escape(s.name), errdefs.ErrInvalidArgument)
	}
	if _, err := s.check(); err != nil { // no kernel gets bytes that were not checked
		return err
	}
	h := handoff{s.region, s.origin, c.Bool("writable"), c.String("append")}
	res := &handoffJSON{Image: escape(s.name), Offset: s.origin, Ways: h.ways(), Keep: keepFile}
	res.Region.Kind, res.Region.Path = s.region.Kind(), escape(s.region.Path())
	res.Region.Address, res.Region.Size = s.region.Address(), s.region.Size()
	if s.rec != nil {
		res.Keep = keepPool
	}
	if engine := c.String("engine"); engine != "" {
		res.Ways = only(res.Ways, func(w *way) bool { return w.Engine == engine })
	}
	if to == "" {
		if err := printJSON(c.App.Writer, res); err != nil {
			return err
		}
		if _, err := first(res.Ways); err != nil {
			return errBad
		}
		return nil
	}
	w, err := first(only(res.Ways, func(w *way) bool { return w.To == to }))
	if err != nil {
		return fmt.Errorf("hand out %s: %w", escape(s.name), err)
	}
	if _, err := fmt.Fprintln(c.App.Writer, w); err != nil {
		return err
	}
	for _, note := range append(w.notes(), res.Keep) {
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: note: %s\n", note)
	}
	return nil
}

// What keeps an image for a kernel that does not say that it uses it.
const (
	keepPool = "nothing pins the image for the other kernel: keep a container or snapshot of it on the pool's owner, " +
		"or run a daemon there, whose seat pins it"
	keepFile = "the other kernel reads the image where it lies: leave it there as it is"
)

// handoffTo is whom the command line asks for: toKernel, toQEMU, or "" for all,
// in JSON.
func handoffTo(c *cli.Context) (string, error) {
	var to []string
	for flag, who := range map[string]string{"kernel-cmdline": toKernel, "qemu": toQEMU, "json": ""} {
		if c.Bool(flag) {
			to = append(to, who)
		}
	}
	if len(to) != 1 {
		return "", usagef("handoff: want one of --kernel-cmdline, --qemu and --json")
	}
	engine := c.String("engine")
	switch {
	case engine != "" && engine != byDaxfs && engine != byErofs:
		return "", usagef("--engine %s: another kernel can have an image by %s or %s", escape(engine), byDaxfs, byErofs)
	case to[0] == toKernel && engine == byErofs:
		return "", usagef("--engine %s is for --qemu: a kernel that has the memory takes %s", byErofs, byDaxfs)
	case to[0] == toKernel && c.Bool("writable"):
		return "", usagef("--writable is for --qemu")
	case strings.ContainsFunc(c.String("append"), func(r rune) bool { return r < ' ' }):
		return "", usagef("--append: a command line is one line")
	}
	return to[0], nil
}

// only returns the ways that match accepts.
func only(ways []*way, match func(*way) bool) []*way {
	out := []*way{}
	for _, w := range ways {
		if match(w) {
			out = append(out, w)
		}
	}
	return out
}

// first returns the first way that can be taken, or why none can.
func first(ways []*way) (*way, error) {
	var why []error
	for _, w := range ways {
		if w.Reason == "" {
			return w, nil
		}
		why = append(why, fmt.Errorf("%s: %s", w.Engine, w.Reason))
	}
	return nil, fmt.Errorf("%w: %w", errors.Join(why...), errdefs.ErrFailedPrecondition)
}
