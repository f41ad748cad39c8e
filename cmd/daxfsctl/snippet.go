package main

import (
	"fmt"

	"github.com/daxfs/containerd-daxfs/internal/config"
)

// proxySnippet names the daemon to containerd.
func proxySnippet(name string, cfg *config.Config) string {
	return fmt.Sprintf(`[proxy_plugins.%[1]s]
  type = "snapshot"
  address = %[2]q
  capabilities = ["rebase", "remap-ids"]
  platform = "linux(+daxfs)"
  [proxy_plugins.%[1]s.exports]
    root = %[3]q
    enable_remote_snapshot_annotations = "true"
`, name, cfg.Address, cfg.Root)
}

// differSnippet names the daemon's differ to containerd, and has clients ask it.
func differSnippet(name string, cfg *config.Config) string {
	return fmt.Sprintf(`[proxy_plugins.%[1]s]
  type = "diff"
  address = %[2]q

%[3]s`, name, cfg.Address, differOrderSnippet(name))
}

func differOrderSnippet(name string) string {
	return fmt.Sprintf(`[plugins.'io.containerd.service.v1.diff-service']
  default = [%q, "walking"]
`, name)
}

// unpackSnippet lets the transfer service unpack for a snapshotter.
func unpackSnippet(platform, name, differ string) string {
	return fmt.Sprintf(`[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = %q
  snapshotter = %q
  differ = %q
`, platform, name, differ)
}
