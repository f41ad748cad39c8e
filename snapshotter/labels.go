package snapshotter

import (
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"fmt"
)

const ownPrefix = "containerd.io/snapshot/daxfs."

// Labels that the snapshotter itself sets. Clients cannot change them.
const (
	// LabelLayer is on every committed snapshot: the key of its layer index
	// in the pool, in hexadecimal.
	LabelLayer = ownPrefix + "layer"
	// LabelImage and LabelEngine are shown on active and view snapshots whose
	// image is mounted: its key, and "engine/method".
	LabelImage  = ownPrefix + "image"
	LabelEngine = ownPrefix + "engine"
)

// labelStaged is on active snapshots that are a layer of the pool already: its
// key.
const labelStaged = ownPrefix + "staged"

// labelApplied is on active snapshots into which our differ has unpacked: the
// layer's key.
const labelApplied = ownPrefix + "applied"

// labelTarget is on the snapshots that containerd's unpack prepares: the
// chainID it will commit (core/snapshots, "containerd.io/snapshot.ref").
const labelTarget = "containerd.io/snapshot.ref"

// unpackKey are the keys of an unpack without labels: containerd's
// snapshots.UnpackKeyPrefix behind the "namespace/number/" of its metadata.
var unpackKey = regexp.MustCompile(`(^|/)` + snapshots.UnpackKeyPrefix + `-[^/ ]+ sha256:[0-9a-f]{64}$`)

// isUnpack reports whether a snapshot is prepared to take one layer: it is
// written by containerd's differ into the upper directory and never mounted
// for a container.
func isUnpack(info snapshots.Info) bool {
	return info.Labels[labelTarget] != "" || unpackKey.MatchString(info.Name)
}

// refuseOwnLabels keeps clients from naming layers themselves.
func refuseOwnLabels(labels map[string]string) error {
	for k := range labels {
		if strings.HasPrefix(k, ownPrefix) {
			return fmt.Errorf("label %q is the snapshotter's own: %w", k, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// keepOwnLabels puts back what an update changed of the snapshotter's labels
// and reports whether it had to.
func keepOwnLabels(info *snapshots.Info, old snapshots.Info) bool {
	changed := false
	for k := range info.Labels {
		if _, had := old.Labels[k]; strings.HasPrefix(k, ownPrefix) && !had {
			delete(info.Labels, k)
			changed = true
		}
	}
	for k, v := range old.Labels {
		if strings.HasPrefix(k, ownPrefix) && info.Labels[k] != v {
			if info.Labels == nil {
				info.Labels = map[string]string{}
			}
			info.Labels[k] = v
			changed = true
		}
	}
	return changed
}
