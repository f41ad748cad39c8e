package main

import (
	"fmt"
	"strings"

	"github.com/daxfs/containerd-daxfs/internal/config"
)

// proxySnippet names the daemon to containerd.
func proxySnippet(name string, cfg *config.Config) string {
	return fmt.Sprintf(`[proxy_plugins.%[1]s]
  type = "snapshot"
  address = %[2]q
  capabilities = ["rebase", "remap-ids"]
  [proxy_plugins.%[1]s.exports]
    root = %[3]q
    enable_remote_snapshot_annotations = "true"
`, name, cfg.Address, cfg.Root)
}

// unpackSnippet lets the transfer service unpack for snapshotters. A list
// replaces containerd's own, which has overlayfs.
func unpackSnippet(names ...string) string {
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, `[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux"
  snapshotter = %q
  differ = "walking"
`, name)
	}
	return b.String()
}
