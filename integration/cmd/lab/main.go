// Command lab runs commands on the kernels of package vm, for people.
//
//	lab kernels                          fetch the kernels and list them
//	lab module                           build the module for each of them
//	lab exec -kernel 6.12 -- CMD ARGS... run a command in a fresh guest
//
// exec ends with the command's exit status, or with 1 if the kernel reported a
// defect.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/daxfs/containerd-daxfs/integration/vm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (code int, err error) {
	if len(args) == 0 {
		return 0, errors.New("want kernels, module or exec")
	}
	switch args[0] {
	case "kernels":
		return 0, kernels(ctx)
	case "module":
		return 0, module(ctx)
	case "exec":
		return execute(ctx, args[1:])
	}
	return 0, fmt.Errorf("unknown command %q, want kernels, module or exec", args[0])
}

func kernels(ctx context.Context) error {
	kernels, err := vm.Kernels(ctx)
	for _, k := range kernels {
		fmt.Printf("%s\t%s\t%s\n", k.Name, k.Release, k.Root)
	}
	return err
}

func module(ctx context.Context) error {
	kernels, err := vm.Kernels(ctx)
	if err != nil {
		return err
	}
	for _, k := range kernels {
		path, err := k.Module(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%s\t%s\n", k.Name, path)
	}
	return nil
}

func execute(ctx context.Context, args []string) (code int, err error) {
	var m vm.Machine
	flags := flag.NewFlagSet("lab exec", flag.ExitOnError)
	kernel := flags.String("kernel", "6.12", "`name` of the kernel")
	memory := flags.String("mem", "1G", "the guest's RAM, a number with `unit` M or G")
	flags.StringVar(&m.Pool, "pool", "", "`file` that becomes memory shared with other guests, in /dev/shm")
	flags.BoolVar(&m.NdPmem, "ndpmem", false, "make the pool /dev/pmem0")
	flags.BoolVar(&m.Daxfs, "daxfs", false, "build and load the module")
	flags.StringVar(&m.Append, "append", "", "`arguments` added to the kernel's command line")
	flags.StringVar(&m.Shared, "shared", "", "`directory` that the guest may write")
	flags.StringVar(&m.Disk, "disk", "", "raw disk image `file`, /dev/vda in the guest")
	modules := flags.String("modules", "", "further kernel modules to load, `names` with commas")
	showConsole := flags.Bool("console", false, "print the kernel's log at the end")
	if err := flags.Parse(args); err != nil {
		return 0, err
	}
	if flags.NArg() == 0 {
		return 0, errors.New("exec: no command")
	}
	if *modules != "" {
		m.Modules = strings.Split(*modules, ",")
	}
	if m.Memory, err = bytes(*memory); err != nil {
		return 0, err
	}
	for _, path := range []*string{&m.Pool, &m.Shared, &m.Disk} {
		if *path != "" {
			if *path, err = filepath.Abs(*path); err != nil {
				return 0, err
			}
		}
	}
	if m.Kernel, err = vm.FindKernel(ctx, *kernel); err != nil {
		return 0, err
	}
	wd, err := os.Getwd()
	if err != nil {
		return 0, err
	}

	g, err := vm.Boot(ctx, m)
	if err != nil {
		return 0, err
	}
	c := vm.Command{Args: flags.Args(), Dir: wd, Stdout: os.Stdout, Stderr: os.Stderr}
	if m.Pool != "" {
		c.Env = append(c.Env, fmt.Sprintf("LAB_POOL_ADDRESS=%#x", g.PoolAddress()))
	}
	r, err := g.Run(ctx, c)
	if err == nil {
		code = r.Code
	}
	err = errors.Join(err, g.Close())
	if *showConsole {
		fmt.Fprint(os.Stderr, g.Console())
	}
	if lines := g.Trouble(); len(lines) > 0 {
		err = errors.Join(err, fmt.Errorf("the kernel reported:\n%s", strings.Join(lines, "\n")))
	}
	return code, err
}

// bytes reads a size such as 512M or 2G.
func bytes(s string) (int64, error) {
	unit := map[byte]int64{'M': 1 << 20, 'G': 1 << 30}[s[max(0, len(s)-1):][0]]
	n, err := strconv.ParseInt(strings.TrimRight(s, "MG"), 10, 32)
	if err != nil || unit == 0 || n <= 0 {
		return 0, fmt.Errorf("size %q, want a number with unit M or G", s)
	}
	return n * unit, nil
}
