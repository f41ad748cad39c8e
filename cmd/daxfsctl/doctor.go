package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/instances"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "say what this host can do, what is missing and what helps",
		Description: "Looks at the kernel, the directories, the pool, the daemon and containerd's configuration. Each line is\n" +
			"ok, warn (works, but not as well as it could) or FAIL. The exit status is 1 if there is a FAIL.\n" +
			"Small files and mounts are made and removed again in the pool's directory.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "containerd-config", Usage: "containerd's configuration `FILE`", Value: "/etc/containerd/config.toml"},
			&cli.StringFlag{Name: "name", Usage: "what containerd's configuration calls the snapshotter", Value: "daxfs"},
		},
		Action: runDoctor,
	}
}

// verdict of a check.
type verdict string

const (
	ok   verdict = "ok"
	warn verdict = "warn"
	fail verdict = "fail"
)

// check is one line of the doctor.
type check struct {
	Name   string  `json:"name"`
	Status verdict `json:"status"`
	Detail string  `json:"detail"`
	// Remedy is what to do about it, if there is something to do.
	Remedy string `json:"remedy,omitempty"`
}

// doctor collects checks.
type doctor struct {
	ctx              context.Context
	cfg              *config.Config
	containerdConfig string
	name             string // of the snapshotter in containerd
	multikernel      string // instances.MultikernelDir; another one in tests
	boot             string // this kernel's boot ID
	root             string // "/"; another one in tests
	volatile         bool   // the pool does not survive a reboot

	checks  []check
	snippet strings.Builder // what is missing in containerd's configuration
}

func (d *doctor) add(name string, v verdict, detail, remedy string) {
	if v == ok {
		remedy = ""
	}
	d.checks = append(d.checks, check{name, v, detail, remedy})
}

func runDoctor(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	d := &doctor{ctx: c.Context, containerdConfig: c.String("containerd-config"), name: c.String("name"), multikernel: instances.MultikernelDir, root: "/"}
	var err error
	if d.boot, err = bootID(); err != nil {
		return err
	}
	if d.cfg, err = loadConfig(c); err != nil {
		d.add("config", fail, oneLine(err), "correct "+c.String("config")+", see config.toml.example")
		d.cfg = config.Default()
		_ = d.cfg.Check() // completes it
	} else {
		d.add("config", ok, "root "+d.cfg.Root+", pool "+d.cfg.Pool.Path, "")
	}
	d.kernel()
	if os.Geteuid() == 0 { // kernel has said that the rest needs it
		d.engines()
		d.directories()
		d.regions()
		d.pool()
		d.daemon()
	}
	d.instances()
	d.containerd()

	failed, warned := 0, 0
	for _, k := range d.checks {
		switch k.Status {
		case fail:
			failed++
		case warn:
			warned++
		}
	}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, struct {
			OK      bool    `json:"ok"`
			Checks  []check `json:"checks"`
			Snippet string  `json:"containerd_snippet,omitempty"`
		}{failed == 0, d.checks, d.snippet.String()})
	} else {
		err = d.print(c.App.Writer, failed, warned)
	}
	if err == nil && failed > 0 {
		err = errBad
	}
	return err
}

func (d *doctor) print(w io.Writer, failed, warned int) error {
	if err := table(w, func(w io.Writer) {
		for _, k := range d.checks {
			status := string(k.Status)
			if k.Status == fail {
				status = "FAIL"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", status, k.Name, escape(k.Detail))
			if k.Remedy != "" {
				fmt.Fprintf(w, "\t\t-> %s\n", escape(k.Remedy))
			}
		}
	}); err != nil {
		return err
	}
	if s := d.snippet.String(); s != "" {
		fmt.Fprintf(w, "\nTo be added to %s:\n\n%s\n", d.containerdConfig, s)
	}
	sum := "everything that is needed is there"
	if failed > 0 {
		sum = plural(failed, "problem")
	}
	if warned > 0 {
		sum += ", " + plural(warned, "warning")
	}
	_, err := fmt.Fprintln(w, sum)
	return err
}

// existing returns the directory itself or the nearest one above it that is
// there already.
func existing(dir string) string {
	for dir != "/" {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}
