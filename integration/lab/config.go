package lab

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/daxfs/containerd-daxfs/internal/config"
)

// writeConfigs writes containerd's configuration and our daemon's.
func (l *Lab) writeConfigs() {
	var proxy, unpack string
	imports := ""
	if l.Examples {
		l.example("containerd-config.toml.example", "snippet.toml", nil)
		imports = fmt.Sprintf("imports = [%q]\n", l.path("snippet.toml"))
	} else {
		var caps []string
		if l.Rebase {
			caps = append(caps, `"rebase"`)
		}
		if l.RemapIDs {
			caps = append(caps, `"remap-ids"`)
		}
		proxy = fmt.Sprintf(`
[proxy_plugins.daxfs]
  type = "snapshot"
  address = %q
  capabilities = [%s]
  [proxy_plugins.daxfs.exports]
    root = %q
    enable_remote_snapshot_annotations = "true"
`, l.Socket(), strings.Join(caps, ", "), l.Root())
		ours, differs, platform := "walking", "", "linux"
		if !l.Walking && !l.Standin && !Standin() {
			ours, differs, platform = "daxfs-differ", `"daxfs-differ", `, "linux(+daxfs)"
			proxy = strings.Replace(proxy, "capabilities", "platform = \"linux(+daxfs)\"\n  capabilities", 1)
			proxy += fmt.Sprintf(`
[proxy_plugins.daxfs-differ]
  type = "diff"
  address = %q
`, l.Socket())
		}
		unpack = unpackConfig("linux", Overlayfs, "walking") + unpackConfig(platform, Daxfs, ours)
		if l.Peers.MkfsErofs != "" {
			differs += `"erofs", `
			unpack += unpackConfig("linux", Erofs, "erofs")
			// As containerd's documentation advises for this version.
			proxy += `
[plugins.'io.containerd.differ.v1.erofs']
  mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
`
		}
		if l.Peers.Stargz != "" {
			unpack += unpackConfig("linux", Stargz, "walking")
			proxy += fmt.Sprintf(`
[proxy_plugins.stargz]
  type = "snapshot"
  address = %q
`, l.path("stargz.sock"))
		}
		if differs != "" {
			proxy += fmt.Sprintf(`
[plugins.'io.containerd.service.v1.diff-service']
  default = [%s"walking"]
`, differs)
		}
	}
	// No /opt, and unless a test is about it, no CRI and no NRI: nothing outside the
	// lab's directory.
	disabled := []string{
		"io.containerd.internal.v1.opt",
		"io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
		"io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
	}
	if l.Peers.MkfsErofs == "" {
		disabled = append(disabled, "io.containerd.snapshotter.v1.erofs")
	}
	cri := ""
	if l.CRI != nil {
		cri = l.CRI(l)
	} else {
		disabled = append(disabled, "io.containerd.nri.v1.nri",
			"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
			"io.containerd.podsandbox.controller.v1.podsandbox")
	}
	l.write("containerd.toml", fmt.Sprintf(`version = 3
%sroot = %q
state = %q
temp = %q
disabled_plugins = ["%s"]
[grpc]
  address = %q
[ttrpc]
  address = %q
[debug]
  level = %q
%s
[plugins.'io.containerd.transfer.v1.local']
  max_concurrent_unpacks = %d
%s%s`,
		imports, l.path("root"), l.path("state"), l.path("tmp"), strings.Join(disabled, `", "`),
		l.path("c.sock"), l.path("c.ttrpc"), l.logLevel(), proxy, max(1, l.Parallel), unpack, cri))

	if l.Examples {
		l.example("config.toml.example", "daxfs.toml", map[string]string{
			`"/run/containerd/containerd.sock"`: fmt.Sprintf("%q", l.path("c.sock")),
		})
		return
	}
	keep := "0s"
	if l.KeepMounted {
		keep = time.Duration(config.Default().Engine.KeepMounted).String()
	}
	l.write("daxfs.toml", fmt.Sprintf(`root = %q
address = %q
containerd = %q
log_level = %q

[pool]
path = %q
max_size = %q

[engine]
order = ["erofs"]
keep_mounted = %q
`, l.Root(), l.Socket(), l.path("c.sock"), l.logLevel(), l.PoolPath(), cmp.Or(l.PoolSize, "8GiB"), keep))
}

func (l *Lab) logLevel() string {
	if l.Measured {
		return "info"
	}
	return "debug"
}

func unpackConfig(platform, snapshotter, differ string) string {
	return fmt.Sprintf(`
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = %q
    snapshotter = %q
    differ = %q
`, platform, snapshotter, differ)
}

// example writes one of the repository's example files with the lab's paths, and
// more of them.
func (l *Lab) example(file, name string, more map[string]string) {
	b, err := os.ReadFile(filepath.Join(RepoRoot(), file))
	if err != nil {
		l.t.Fatal(err)
	}
	text := string(b)
	paths := map[string]string{
		`"/run/containerd-daxfs/containerd-daxfs.sock"`: fmt.Sprintf("%q", l.Socket()),
		`"/var/lib/containerd-daxfs"`:                   fmt.Sprintf("%q", l.Root()),
	}
	maps.Copy(paths, more)
	for old, new := range paths {
		if !strings.Contains(text, old) {
			l.t.Fatalf("%s does not name %s", file, old)
		}
		text = strings.ReplaceAll(text, old, new)
	}
	l.write(name, text)
}

func (l *Lab) write(name, text string) {
	if err := os.WriteFile(l.path(name), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}
