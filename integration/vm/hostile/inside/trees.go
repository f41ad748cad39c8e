package inside

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
)

// trees runs Trees.
func trees(task *Task, r region) (map[int64]string, error) {
	at, err := places(1, "tree")
	if err != nil {
		return nil, err
	}
	out := map[int64]string{}
	for _, offset := range task.Images {
		if err := mount(r, offset, at[0], "tree"); err != nil {
			return nil, fmt.Errorf("mount image at %d: %w", offset, err)
		}
		tree, err := fstree.Walk(at[0], fstree.Options{})
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(tree) // sorted by path
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(b)
		out[offset] = fmt.Sprintf("%d names, %s", len(tree), hex.EncodeToString(sum[:]))
		if err := unmount(at[0]); err != nil {
			return nil, err
		}
	}
	return out, nil
}
