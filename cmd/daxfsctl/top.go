package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
)

// minInterval is the shortest time between two looks: a look at a large pool
// reads its whole catalog.
const minInterval = 100 * time.Millisecond

func topCommand() *cli.Command {
	return &cli.Command{
		Name:  "top",
		Usage: "show which kernels are at the pool and what they use, live",
		Description: "On a terminal the picture is drawn again at each interval, until Ctrl-C; else one follows the other, and\n" +
			"with --json one document the other. It works on every kernel that reaches the memory, and beside the owner.\n" +
			"A kernel whose heartbeat is old is late, or gone: nobody can tell from here. Its pins count.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "interval", Usage: "`TIME` between two looks", Value: time.Second},
			&cli.BoolFlag{Name: "once", Usage: "look once"},
			containerdFlag(),
		},
		Action: top,
	}
}

// topJSON is one look at the pool.
type topJSON struct {
	Pool    string      `json:"pool"`
	UUID    string      `json:"uuid"`
	Time    time.Time   `json:"time"`
	Size    int64       `json:"size"`
	Used    int64       `json:"used"`
	Slots   int         `json:"records_max"`
	Owned   bool        `json:"owned"` // false: nobody owns the pool now
	Fence   uint64      `json:"fence"`
	Seats   []seatJSON  `json:"seats"`
	Asked   []askedJSON `json:"requests"` // the last one of each kernel that has made any
	Records []*useJSON  `json:"records"`  // images, layers, chains; in each kind those that most kernels use first
}

// askedJSON is what a kernel has asked of the owner.
type askedJSON struct {
	Seat    int    `json:"seat"`
	Times   uint32 `json:"times"`
	Request string `json:"request"` // the last: "flatten" or "convert"
	Chain   string `json:"chain_id"`
	Image   string `json:"image,omitempty"`
	Outcome string `json:"outcome"` // "waiting", "at work", "done" or "failed"
	Text    string `json:"text,omitempty"`
}

// useJSON is one record and who has it pinned.
type useJSON struct {
	Kind    string     `json:"kind"`
	Key     string     `json:"key"`
	Kernels int        `json:"kernels"`
	Seats   []int      `json:"seats"`
	Space   int64      `json:"own_bytes"`
	Data    int64      `json:"file_bytes"`        // of its layers, where those are shared
	Removed bool       `json:"removed,omitempty"` // goes with the last pin
	Damaged string     `json:"damaged,omitempty"`
	Names   []nameJSON `json:"containerd_images,omitempty"`
}

func top(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	interval := c.Duration("interval")
	if interval < minInterval {
		return usagef("--interval %v: want at least %v", interval, minInterval)
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	view := &topView{c: c, cfg: cfg, screen: c.App.Writer == os.Stdout && term.IsTerminal(int(os.Stdout.Fd())) && !c.Bool("once") && !c.Bool("json")}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := view.show()
		switch {
		case c.Err() != nil:
			return nil // its natural end
		case err != nil || c.Bool("once"):
			return err
		}
		select {
		case <-tick.C:
		case <-c.Done():
			if view.screen {
				fmt.Fprintln(c.App.Writer)
			}
			return nil
		}
	}
}

// topView is what lasts from one look to the next.
type topView struct {
	c      *cli.Context
	cfg    *config.Config
	screen bool // drawn over the last one
	shown  bool
	watch  daxmem.Watch
	names  map[string][]nameJSON // by key, of the images that were there
}

func (v *topView) show() error {
	res, err := v.look(v.c.Context)
	if err != nil {
		return err
	}
	w := v.c.App.Writer
	if v.c.Bool("json") {
		return printJSON(w, res)
	}
	var text bytes.Buffer
	if err := res.print(&text); err != nil {
		return err
	}
	if v.screen {
		return redraw(w, text.Bytes())
	}
	if v.shown {
		fmt.Fprintln(w)
	}
	v.shown = true
	_, err = w.Write(text.Bytes())
	return err
}

func (v *topView) look(ctx context.Context) (*topJSON, error) {
	// Opened anew each time: the pool may have been made anew, or grown.
	region, err := daxmem.OpenRegionReadOnly(v.cfg.Pool.Path)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w (run as root)", err)
		}
		return nil, err
	}
	defer shut(region)
	u, err := v.watch.Look(ctx, region)
	if err != nil {
		return nil, err
	}
	res := &topJSON{
		Pool: v.cfg.Pool.Path, UUID: u.UUID.String(), Time: time.Now().UTC(), Size: u.Size, Used: u.Used, Slots: u.Slots,
		Owned: u.Owned, Fence: u.Fence, Seats: []seatJSON{}, Asked: []askedJSON{}, Records: []*useJSON{},
	}
	for _, s := range u.Seats {
		res.Seats = append(res.Seats, newSeatJSON(s))
	}
	for _, a := range u.Asked {
		res.Asked = append(res.Asked, askedJSON{
			Seat: a.Number, Times: a.Times, Request: a.Kind.String(), Chain: "sha256:" + hex.EncodeToString(a.Chain[:]),
			Image: escape(a.Name), Outcome: a.Outcome, Text: escape(a.Text),
		})
	}
	slices.SortStableFunc(u.Uses, func(a, b *daxmem.Use) int {
		if a.Kind == b.Kind && len(a.Seats) != len(b.Seats) {
			return len(b.Seats) - len(a.Seats)
		}
		return sortTop(a, b)
	})
	v.nameImages(u.Uses)
	for _, s := range u.Uses {
		k := hex.EncodeToString(s.Key[:])
		r := &useJSON{
			Kind: s.Kind.String(), Key: k, Kernels: len(s.Seats), Seats: s.Seats, Space: s.Space, Data: s.Data,
			Removed: s.Removed, Damaged: s.Damaged,
		}
		if r.Seats == nil {
			r.Seats = []int{}
		}
		if s.Kind == daxmem.KindImage {
			r.Names = v.names[k]
		}
		res.Records = append(res.Records, r)
	}
	return res, nil
}

// sortTop puts images first, then layers, then chains.
func sortTop(a, b *daxmem.Use) int {
	order := []daxmem.Kind{daxmem.KindImage, daxmem.KindLayer, daxmem.KindChain}
	if d := slices.Index(order, a.Kind) - slices.Index(order, b.Kind); d != 0 {
		return d
	}
	return sortRecords(a.Record, b.Record)
}

// nameImages asks containerd for names when there is an image that was not there
// at the last look.
func (v *topView) nameImages(uses []*daxmem.Use) {
	names, known := make(map[string][]nameJSON), true
	for _, s := range uses {
		if s.Kind == daxmem.KindImage {
			k := hex.EncodeToString(s.Key[:])
			have, ok := v.names[k]
			names[k], known = have, known && ok
		}
	}
	v.names = names
	if known {
		return
	}
	refs, _, err := findRefs(v.c.Context, v.cfg)
	if err != nil {
		return // this kernel has no snapshots here: keys have to do
	}
	found := findNames(v.c, refs)
	for _, s := range uses {
		if s.Kind == daxmem.KindImage {
			names[hex.EncodeToString(s.Key[:])] = found.of(refs.Images[s.Key], true)
		}
	}
}

// redraw puts text where the last picture was, as much of it as fits.
func redraw(w io.Writer, text []byte) error {
	width, height, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil {
		width, height = 80, 24
	}
	_, err = w.Write(frame(text, width, height))
	return err
}

// frame is text as it is drawn on a terminal of that size.
func frame(text []byte, width, height int) []byte {
	var b bytes.Buffer
	b.WriteString("\x1b[H") // top left
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	if more := len(lines) - height; more > 0 {
		lines = lines[:max(1, height-1)]
		lines = append(lines, fmt.Appendf(nil, "... %d more lines", more+1))
	}
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if r := bytes.Runes(l); len(r) > width {
			l = []byte(string(r[:width]))
		}
		// What was there goes first: behind a line as wide as the terminal it
		// would take the line's last character.
		if i == len(lines)-1 {
			b.WriteString("\x1b[J") // and all below
		} else {
			b.WriteString("\x1b[K")
		}
		b.Write(l)
	}
	return b.Bytes()
}
