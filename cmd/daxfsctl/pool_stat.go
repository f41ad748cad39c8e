package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
)

func poolStatCommand() *cli.Command {
	return &cli.Command{
		Name:   "stat",
		Usage:  "show the pool in numbers",
		Action: onPool(poolStat),
	}
}

// poolStatJSON is the pool in numbers. The bytes by owner add up to Size.
type poolStatJSON struct {
	Path      string     `json:"path"`
	Kind      string     `json:"region_kind"`
	UUID      string     `json:"uuid"`
	State     string     `json:"state"`
	Epoch     uint64     `json:"owner_epoch"`
	Owner     *ownerJSON `json:"owner"` // null: nobody has the pool open, or it is not to be seen
	Size      int64      `json:"size"`
	MaxSize   int64      `json:"max_size"`  // what may be in use, by pool.max_size
	Available int64      `json:"available"` // of that
	Allocated int64      `json:"allocated"` // of the file system
	Bytes     struct {
		Superblock  int64 `json:"superblock"`
		Catalog     int64 `json:"catalog"`
		Metadata    int64 `json:"metadata"`
		Files       int64 `json:"files"`
		Copies      int64 `json:"copies"` // files of self-contained images
		Quarantined int64 `json:"quarantined"`
		Inflight    int64 `json:"in_flight"`
		Free        int64 `json:"free"`
	} `json:"bytes"`
	LargestFree int64 `json:"largest_free"`
	FreeRecords int   `json:"free_records"`
	Layers      int   `json:"layers"`
	Images      int   `json:"images"`
	Extents     int   `json:"extents"`
	Quarantined int   `json:"quarantined"`
	NotDurable  int   `json:"not_durable"`
	Stored      int64 `json:"stored_bytes"`
	Logical     int64 `json:"logical_bytes"`
	Saved       int64 `json:"saved_bytes"`
}

type ownerJSON struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
}

func poolStat(c *cli.Context, cfg *config.Config, pool *daxmem.Pool) error {
	st, err := pool.Stat()
	if err != nil {
		return err
	}
	res := &poolStatJSON{
		Path: st.Path, Kind: st.Kind, UUID: st.UUID.String(), State: st.State, Epoch: st.Epoch, Owner: poolOwner(st.Path),
		Size: st.Size, Allocated: st.Allocated, LargestFree: st.LargestFree, FreeRecords: st.FreeRecords,
		Layers: st.LayerCount, Images: st.ImageCount, Extents: st.ExtentCount, Quarantined: st.QuarantinedCount,
		NotDurable: st.NotDurable, Stored: st.StoredBytes, Logical: st.LogicalBytes, Saved: st.SavedBytes,
	}
	b := &res.Bytes
	b.Superblock, b.Catalog, b.Metadata, b.Files = st.Superblock, st.Catalog, st.Segments, st.Extents
	b.Copies, b.Quarantined, b.Free = st.Copies, st.Quarantined, st.Free
	b.Inflight = st.Inflight + st.Retired + st.Lost
	res.MaxSize, res.Available = room(cfg, &st)
	if c.Bool("json") {
		return printJSON(c.App.Writer, res)
	}
	return table(c.App.Writer, res.print)
}

// room is how many bytes may be in use, and how many of them are left. The
// pool is as large as was ever configured; it grows when the daemon starts, if
// it is in a file.
func room(cfg *config.Config, st *daxmem.Stat) (most, left int64) {
	most = int64(cfg.Pool.MaxSize)
	if st.Kind != daxmem.KindFile || poolOwner(st.Path) != nil {
		most = min(most, st.Size)
	}
	return most, max(0, most-(st.Size-st.Free))
}

func (r *poolStatJSON) print(w io.Writer) {
	fmt.Fprintf(w, "pool:\t%s\n", escape(r.Path))
	fmt.Fprintf(w, "uuid:\t%s\n", r.UUID)
	fmt.Fprintf(w, "state:\t%s\n", r.describeState())
	if r.Kind == daxmem.KindFile {
		fmt.Fprintf(w, "size:\t%s, takes %s of the file system\n", size(r.Size), size(r.Allocated))
	} else {
		fmt.Fprintf(w, "size:\t%s of %s memory\n", size(r.Size), r.Kind)
	}
	fmt.Fprintf(w, "available:\t%s (%s) of at most %s\n", size(r.Available), percent(r.Available, r.MaxSize), size(r.MaxSize))
	fmt.Fprintf(w, "records:\t%s, %s, room for %d more\n", plural(r.Layers, "layer"), plural(r.Images, "image"), r.FreeRecords)
	fmt.Fprintf(w, "files:\t%s, as %s: %s saved by sharing\n", size(r.Logical), size(r.Stored), size(r.Saved))
	fmt.Fprintf(w, "space:\t%s of file data in %s\n", size(r.Bytes.Files), plural(r.Extents, "extent"))
	if r.Bytes.Copies > 0 {
		fmt.Fprintf(w, "\t%s of copies in images, which share nothing\n", size(r.Bytes.Copies))
	}
	fmt.Fprintf(w, "\t%s of metadata of layers and images\n", size(r.Bytes.Metadata))
	fmt.Fprintf(w, "\t%s of superblock and catalog\n", size(r.Bytes.Superblock+r.Bytes.Catalog))
	if r.Bytes.Inflight > 0 {
		fmt.Fprintf(w, "\t%s in flight\n", size(r.Bytes.Inflight))
	}
	if r.Quarantined > 0 {
		fmt.Fprintf(w, "\t%s of %s in quarantine: see pool check\n", size(r.Bytes.Quarantined), plural(r.Quarantined, "record"))
	}
	if r.NotDurable > 0 {
		fmt.Fprintf(w, "not durable:\t%s that a loss of power now could cost\n", plural(r.NotDurable, "record"))
	}
}

func (r *poolStatJSON) describeState() string {
	switch {
	case r.Owner != nil:
		return fmt.Sprintf("in use by %s (pid %d)", r.Owner.Command, r.Owner.PID)
	case r.State == "clean":
		return "closed"
	case r.State == "open":
		return "not closed by its last owner: the next one puts it in order"
	}
	return r.State + ": the next owner proves all that may have been lost"
}

func percent(part, all int64) string {
	if all == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.0f %%", 100*float64(part)/float64(all))
}
