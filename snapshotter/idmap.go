package snapshotter

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// idmapOptions returns the mount options that make containerd show the lower
// directory with mapped owners (core/mount, idmapped mounts): nothing is
// chowned.
func idmapOptions(labels map[string]string) []string {
	var out []string
	if v, ok := labels[snapshots.LabelSnapshotUIDMapping]; ok {
		out = append(out, "uidmap="+v)
	}
	if v, ok := labels[snapshots.LabelSnapshotGIDMapping]; ok {
		out = append(out, "gidmap="+v)
	}
	return out
}

// idMap is a list of ranges `container:host:size`.
type idMap []struct{ container, host, size uint64 }

// parseIDMap reads the form of containerd's labels, ranges separated by
// commas. The empty string is the identity.
func parseIDMap(s string) (idMap, error) {
	if s == "" {
		return nil, nil
	}
	var m idMap
	for _, r := range strings.Split(s, ",") {
		f := strings.Split(r, ":")
		if len(f) != 3 {
			return nil, fmt.Errorf("id mapping %q: want container:host:size: %w", r, errdefs.ErrInvalidArgument)
		}
		var n [3]uint64
		for i := range f {
			var err error
			if n[i], err = strconv.ParseUint(f[i], 10, 32); err != nil {
				return nil, fmt.Errorf("id mapping %q: %w: %w", r, err, errdefs.ErrInvalidArgument)
			}
		}
		m = append(m, struct{ container, host, size uint64 }{n[0], n[1], n[2]})
	}
	return m, nil
}

// host returns the host's id for an id of the container.
func (m idMap) host(id uint32) (uint32, error) {
	if m == nil {
		return id, nil
	}
	for _, r := range m {
		if c := uint64(id); c >= r.container && c-r.container < r.size {
			return uint32(r.host + c - r.container), nil
		}
	}
	return 0, fmt.Errorf("id %d is in no range of the id mapping: %w", id, errdefs.ErrInvalidArgument)
}
