package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	transferPlugin = "io.containerd.transfer.v1.local"
	grpcPlugin     = "io.containerd.server.v1.grpc"
	criPlugin      = "io.containerd.cri.v1.images"
	diffPlugin     = "io.containerd.service.v1.diff-service"
	snapshotType   = "io.containerd.snapshotter.v1"
	diffType       = "io.containerd.differ.v1"
)

// containerd looks at its configuration, and at what the running one has made
// of it.
func (d *doctor) containerd() {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	ctx := log.WithLogger(d.ctx, logrus.NewEntry(quiet))
	cfg := &srvconfig.Config{ProxyPlugins: map[string]srvconfig.ProxyPlugin{}, StreamProcessors: map[string]srvconfig.StreamProcessor{}, Timeouts: map[string]string{}}
	err := srvconfig.LoadConfig(ctx, d.containerdConfig, cfg)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.add("containerd_config", fail, d.containerdConfig+": "+oneLine(err), "correct it; --containerd-config names another file")
		return
	}
	if err != nil {
		d.add("containerd_config", fail, oneLine(err), "make it, with what stands below; --containerd-config names another file")
		d.snippet.WriteString("version = 3\n\n")
	} else {
		d.add("containerd_config", ok, d.containerdConfig, "")
	}
	known := d.proxyPlugin(cfg)
	d.unpack(ctx, cfg, d.differ(ctx, cfg))
	d.discards(ctx, cfg)
	if d.running(containerdAddress(ctx, cfg)) && !known {
		d.add("containerd_file", warn, "the running containerd has the snapshotter, "+d.containerdConfig+" has not",
			"--containerd-config names the file that containerd was started with")
	}
}

// proxyPlugin checks what the configuration says of the snapshotter, and
// reports whether it says anything.
func (d *doctor) proxyPlugin(cfg *srvconfig.Config) (known bool) {
	const name = "proxy_plugin"
	p, there := cfg.ProxyPlugins[d.name]
	section := "[proxy_plugins." + d.name + "]"
	if !there {
		d.add(name, fail, "there is no "+section, "add what stands below, and restart containerd")
		d.snippet.WriteString(proxySnippet(d.name, d.cfg))
		return false
	}
	var bad, weak []string
	if p.Type != "snapshot" && p.Type != snapshotType {
		bad = append(bad, fmt.Sprintf("type is %q, want \"snapshot\"", p.Type))
	}
	if a := strings.TrimPrefix(p.Address, "unix://"); a != d.cfg.Address {
		bad = append(bad, fmt.Sprintf("address is %q, the daemon has %q", p.Address, d.cfg.Address))
	}
	if r := p.Exports["root"]; r != d.cfg.Root {
		weak = append(weak, fmt.Sprintf("exports.root is %q, want %q: kubelet does not find the image file system", r, d.cfg.Root))
	}
	if !slices.Contains(p.Capabilities, "rebase") {
		weak = append(weak, `capabilities lack "rebase": layers are unpacked one after the other`)
	}
	if !slices.Contains(p.Capabilities, "remap-ids") {
		weak = append(weak, `capabilities lack "remap-ids": containers in user namespaces copy and chown their image`)
	}
	v, detail := ok, section+" names this daemon"
	if len(weak) > 0 {
		v = warn
	}
	if len(bad) > 0 {
		v = fail
	}
	if v != ok {
		detail = section + ": " + strings.Join(append(bad, weak...), "; ")
		d.snippet.WriteString(proxySnippet(d.name, d.cfg))
	}
	d.add(name, v, detail, "put what stands below in place of it, and restart containerd")
	return true
}

// differ checks whether containerd knows the daemon's differ, and returns the name
// that it has, or should get.
func (d *doctor) differ(ctx context.Context, cfg *srvconfig.Config) (differ string) {
	const name = "differ"
	for n, p := range cfg.ProxyPlugins {
		if n != d.name && (p.Type == "diff" || p.Type == diffType) && strings.TrimPrefix(p.Address, "unix://") == d.cfg.Address && (differ == "" || n < differ) {
			differ = n
		}
	}
	if differ == "" {
		differ = d.name + "-differ"
		d.add(name, warn, "no [proxy_plugins] section of type \"diff\" names this daemon: layers are unpacked to disk and read again",
			"add what stands below, and restart containerd")
		d.addSnippet(differSnippet(differ, d.cfg))
		return differ
	}
	order := struct {
		Default []string `toml:"default"`
	}{}
	if _, err := cfg.Decode(ctx, diffPlugin, &order); err != nil {
		d.add(name, fail, fmt.Sprintf("plugin %s: %s", diffPlugin, oneLine(err)), "correct "+d.containerdConfig)
		return differ
	}
	section := "[proxy_plugins." + differ + "]"
	if len(order.Default) == 0 || order.Default[0] != differ {
		d.add(name, warn, section+" names this daemon, but is not the first in default of "+diffPlugin+": clients that unpack for themselves do not use it",
			"put what stands below in place of it, and restart containerd")
		d.addSnippet(differOrderSnippet(differ))
		return differ
	}
	d.add(name, ok, section+" names this daemon", "")
	return differ
}

// addSnippet adds a section to what has to be written into containerd's
// configuration.
func (d *doctor) addSnippet(text string) {
	if strings.HasSuffix(d.snippet.String(), "\"\n") || strings.HasSuffix(d.snippet.String(), "]\n") {
		d.snippet.WriteByte('\n')
	}
	d.snippet.WriteString(text)
}

// transferConfig is what matters here of the transfer service's.
type transferConfig struct {
	Parallel int `toml:"max_concurrent_unpacks"`
	Unpack   []struct {
		Platform    string `toml:"platform"`
		Snapshotter string `toml:"snapshotter"`
		Differ      string `toml:"differ"`
	} `toml:"unpack_config"`
}

// unpack checks whether the transfer service (ctr pull, CRI) unpacks for the
// snapshotter.
func (d *doctor) unpack(ctx context.Context, cfg *srvconfig.Config, differ string) {
	const name = "transfer_unpack"
	t := &transferConfig{}
	if _, err := cfg.Decode(ctx, transferPlugin, t); err != nil {
		d.add(name, fail, fmt.Sprintf("plugin %s: %s", transferPlugin, oneLine(err)), "correct "+d.containerdConfig)
		return
	}
	for _, u := range t.Unpack {
		if u.Snapshotter != d.name {
			continue
		}
		detail := fmt.Sprintf("the transfer service unpacks %s for %s", u.Platform, d.name)
		if t.Parallel < 2 {
			detail += ", one layer after the other (max_concurrent_unpacks)"
		}
		if u.Differ != differ {
			d.add(name, warn, fmt.Sprintf("%s, with differ %q, which unpacks to disk first", detail, cmp.Or(u.Differ, "walking")),
				fmt.Sprintf("differ = %q in the unpack_config of %s", differ, d.name))
			return
		}
		d.add(name, ok, detail, "")
		return
	}
	d.add(name, fail, "no unpack_config of the transfer service names "+d.name+": ctr image pull and CRI do not unpack for it",
		"add what stands below, and restart containerd")
	if len(t.Unpack) == 0 {
		// The first entry replaces containerd's default.
		d.addSnippet(unpackSnippet("linux", defaults.DefaultSnapshotter, "walking"))
	}
	d.addSnippet(unpackSnippet("linux(+daxfs)", d.name, differ))
}

// discards checks whether CRI throws away what a pool in memory is filled from
// after a reboot.
func (d *doctor) discards(ctx context.Context, cfg *srvconfig.Config) {
	if !d.volatile || d.cfg.Pool.Persist || d.cfg.Containerd == "" {
		return
	}
	const name = "discarded_layers"
	cri := &struct {
		Discard bool `toml:"discard_unpacked_layers"`
	}{}
	if _, err := cfg.Decode(ctx, criPlugin, cri); err != nil {
		d.add(name, fail, fmt.Sprintf("plugin %s: %s", criPlugin, oneLine(err)), "correct "+d.containerdConfig)
	} else if cri.Discard {
		d.add(name, warn, "the pool is in memory, and CRI keeps no layer that is unpacked (discard_unpacked_layers): after a reboot they are lost",
			"pool.persist = true, or discard_unpacked_layers = false")
	}
}

// containerdAddress is where containerd serves, in configurations of all
// versions.
func containerdAddress(ctx context.Context, cfg *srvconfig.Config) string {
	if a := cfg.GRPC.Address; a != "" { //nolint:staticcheck // versions before 4 have it there
		return a
	}
	plugin := struct {
		Address string `toml:"address"`
	}{defaults.DefaultAddress}
	if _, err := cfg.Decode(ctx, grpcPlugin, &plugin); err != nil {
		return defaults.DefaultAddress
	}
	return plugin.Address
}

// running asks the running containerd about the snapshotter, and reports
// whether it has it.
func (d *doctor) running(address string) bool {
	const name = "containerd"
	conn, err := net.DialTimeout("unix", address, answerWait)
	if err != nil {
		d.add(name, warn, "does not answer: "+err.Error(), "systemctl start containerd")
		return false
	}
	d.namespaces(conn)
	conn.Close()
	cc, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		d.add(name, warn, err.Error(), "")
		return false
	}
	defer shut(cc)
	ctx, cancel := context.WithTimeout(d.ctx, answerWait)
	defer cancel()
	list, err := introspection.NewIntrospectionClient(cc).Plugins(ctx, &introspection.PluginsRequest{
		Filters: []string{fmt.Sprintf("type==%s,id==%q", snapshotType, d.name)},
	})
	switch {
	case err != nil:
		d.add(name, warn, fmt.Sprintf("%s: no sensible answer: %v", address, err), "see containerd's journal")
	case len(list.Plugins) == 0:
		d.add(name, fail, fmt.Sprintf("the containerd on %s runs without the snapshotter %s", address, d.name), "restart containerd once its configuration has it")
	case list.Plugins[0].InitErr != nil && list.Plugins[0].InitErr.Code != 0:
		d.add(name, fail, fmt.Sprintf("containerd could not use the snapshotter %s: %s", d.name, list.Plugins[0].InitErr.Message), "restart containerd after the daemon")
	default:
		p := list.Plugins[0]
		caps := "no capabilities"
		if len(p.Capabilities) > 0 {
			caps = strings.Join(p.Capabilities, ", ")
		}
		d.add(name, ok, fmt.Sprintf("the containerd on %s has the snapshotter %s (%s)", address, d.name, caps), "")
		return true
	}
	return false
}

// namespaces checks that containerd sees what the daemon mounts.
func (d *doctor) namespaces(containerd net.Conn) {
	daemon, err := net.DialTimeout("unix", d.cfg.Address, answerWait)
	if err != nil {
		return // reported by daemon
	}
	defer daemon.Close()
	a, errA := mountNamespace(daemon)
	b, errB := mountNamespace(containerd)
	if errA != nil || errB != nil || a == b {
		return
	}
	d.add("mount_namespace", fail, fmt.Sprintf("the daemon is in mount namespace %s and containerd in %s: containers do not see the images", a, b),
		"start both without options that make a namespace (PrivateMounts=, PrivateTmp=, ProtectSystem= and others in the unit file)")
}

func mountNamespace(c net.Conn) (string, error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return "", err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return "", cerr
	}
	if err != nil {
		return "", err
	}
	return os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", cred.Pid))
}
