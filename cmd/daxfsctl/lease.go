package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/instances"
)

func leaseLsCommand() *cli.Command {
	return &cli.Command{
		Name:   "ls",
		Usage:  "list the kernels at the pool",
		Action: leaseLs,
	}
}

// seatJSON is one kernel's seat at the pool.
type seatJSON struct {
	Seat       int        `json:"seat"`
	Generation uint64     `json:"generation"`
	Held       bool       `json:"held"` // else it is being claimed
	Owner      bool       `json:"owner"`
	Instance   string     `json:"instance,omitempty"`
	Holder     string     `json:"holder,omitempty"`
	Boot       string     `json:"boot_id"`
	Claimed    time.Time  `json:"claimed"`
	Heartbeat  *time.Time `json:"heartbeat"` // by the holder's clock
	Pins       int        `json:"pins"`
	Damaged    string     `json:"damaged,omitempty"`
	// State is what the orchestrator says about the instance, and Word how it
	// puts it or why it is unclear; empty: nobody was asked.
	State  string     `json:"instance_state,omitempty"`
	Word   string     `json:"instance_word,omitempty"`
	Chains chainsJSON `json:"chains"`
}

// chainsJSON counts how a reader came by the chains of layers that it was to
// run, since it has the seat.
type chainsJSON struct {
	Found    uint64 `json:"found"`    // in the pool
	Brought  uint64 `json:"brought"`  // by the owner, when asked
	Unpacked uint64 `json:"unpacked"` // by the reader, for itself
	Missed   uint64 `json:"missed"`   // an error
}

func newSeatJSON(s *daxmem.Seat) seatJSON {
	j := seatJSON{
		Seat: s.Number, Generation: s.Generation, Held: s.Held, Owner: s.Owner, Instance: s.Instance, Holder: s.Holder,
		Boot: uuid.UUID(s.Boot).String(), Claimed: s.Claimed, Pins: s.Pins, Damaged: s.Damaged,
		Chains: chainsJSON{s.Chains[daxmem.ChainFound], s.Chains[daxmem.ChainBrought], s.Chains[daxmem.ChainUnpacked], s.Chains[daxmem.ChainMissed]},
	}
	if !s.Heartbeat.IsZero() {
		j.Heartbeat = &s.Heartbeat
	}
	return j
}

func leaseLs(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	seats, err := poolSeats(c.Context, cfg)
	if err != nil {
		return err
	}
	out := []seatJSON{}
	for _, s := range seats {
		out = append(out, newSeatJSON(s))
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	if err := askInstances(c.Context, cfg, out, boot); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	return table(c.App.Writer, func(w io.Writer) {
		fmt.Fprintln(w, "SEAT\tROLE\tINSTANCE\tSTATE\tHOLDER\tPINS\tHEARTBEAT")
		for _, s := range out {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%s\n", s.Seat, s.role(), orDash(s.Instance), s.state(), orDash(s.Holder), s.Pins, s.age(time.Now()))
		}
	})
}

// bootID is this kernel's, as seats have it.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// askInstances fills in what the orchestrator says about the instances that have
// the seats, where the configuration names one. That it cannot be asked is an
// answer too. boot is this kernel's boot ID, about which nobody need be asked.
func askInstances(ctx context.Context, cfg *config.Config, seats []seatJSON, boot string) error {
	o, err := cfg.Share.Orchestrator()
	if o == nil || err != nil {
		return err
	}
	list, err := o.List(ctx)
	for i := range seats {
		s := &seats[i]
		if s.Instance == "" {
			continue // nobody knows who it is
		}
		status := list.Of(s.Instance)
		if s.Boot == boot {
			status = instances.Status{State: instances.Running, Word: "this kernel"}
		} else if err != nil {
			status = instances.Status{State: instances.Unclear, Word: oneLine(err)}
		}
		s.State, s.Word = status.State.String(), escape(status.Word)
	}
	return nil
}

// state is what the orchestrator says, in a column.
func (s *seatJSON) state() string {
	switch {
	case s.State == "":
		return "-"
	case s.Word == "":
		return s.State
	}
	return fmt.Sprintf("%s (%s)", s.State, s.Word)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return escape(s)
}

func (s *seatJSON) role() string {
	switch {
	case s.Damaged != "":
		return "damaged"
	case !s.Held:
		return "claiming"
	case s.Owner:
		return "owner"
	}
	return "reader"
}

// age is how long ago the holder was heard of, if the clocks agree.
func (s *seatJSON) age(now time.Time) string {
	switch {
	case s.Heartbeat == nil:
		return "never"
	case s.Heartbeat.After(now.Add(time.Second)):
		return fmt.Sprintf("%s ahead of this clock", s.Heartbeat.Sub(now).Round(time.Second))
	}
	return fmt.Sprintf("%s ago", now.Sub(*s.Heartbeat).Round(time.Second))
}

// poolSeats lists the kernels at the configured pool.
func poolSeats(ctx context.Context, cfg *config.Config) ([]*daxmem.Seat, error) {
	pool, err := openPool(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer shut(pool)
	return pool.Seats()
}

func leaseEvictCommand() *cli.Command {
	return &cli.Command{
		Name:      "evict",
		Usage:     "declare a kernel at the pool as gone",
		ArgsUsage: "SEAT",
		Description: "Its pins do not count any more: what only it had mounted can be removed and its memory used again.\n" +
			"If it is not gone, its containers read wrong bytes then. A kernel that is only silent is not gone.\n" +
			"When it was the pool's owner (--owner says that this is meant), another kernel can own the pool.",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "owner", Usage: "the seat is the owner's"}},
		Action: leaseEvict,
	}
}

func leaseEvict(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	number, err := strconv.Atoi(c.Args().First())
	if err != nil {
		return usagef("evict: seat %q is not a number", c.Args().First())
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	seats, err := poolSeats(c.Context, cfg)
	if err != nil {
		return err
	}
	for _, s := range seats {
		if s.Number != number {
			continue
		}
		if s.Owner != c.Bool("owner") {
			return fmt.Errorf("%v is %s: with --owner exactly for the owner's seat: %w", s, map[bool]string{true: "the pool's owner", false: "a reader"}[s.Owner], errdefs.ErrFailedPrecondition)
		}
		return evict(c, cfg, s)
	}
	return fmt.Errorf("seat %d is free (daxfsctl lease ls lists those that are not): %w", number, errdefs.ErrNotFound)
}

func evict(c *cli.Context, cfg *config.Config, s *daxmem.Seat) error {
	region, err := daxmem.OpenRegionShared(cfg.Pool.Path)
	if err != nil {
		return err
	}
	defer shut(region)
	if err := daxmem.Evict(region, s.Number, s.Generation); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, newSeatJSON(s))
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: evicted, %s let go\n", escape(s.String()), plural(s.Pins, "pin"))
	return err
}
