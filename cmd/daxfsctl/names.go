package main

import (
	"context"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	content "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// nameJSON is an image of containerd.
type nameJSON struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func (n nameJSON) String() string { return n.Name + " (" + n.Namespace + ")" }

// imageNames tells which images of containerd have a committed snapshot among
// theirs. Keys are "NAMESPACE CHAINID".
type imageNames struct {
	with map[string][]nameJSON // all images with that chain at their bottom
	top  map[string][]nameJSON // those whose whole chain it is
}

func containerdFlag() cli.Flag {
	return &cli.StringFlag{Name: "containerd", Usage: "containerd's unix `SOCKET`, to ask for the names of images", Value: defaults.DefaultAddress}
}

// namesWait is how long names may take: they are an extra.
const namesWait = 5 * time.Second

// findNames asks containerd for the images in the namespaces of the snapshots.
// Where that cannot be had, there are no names; it is a warning only for those
// who asked for them.
func findNames(c *cli.Context, refs *snapshotter.Refs) *imageNames {
	n := &imageNames{make(map[string][]nameJSON), make(map[string][]nameJSON)}
	if err := n.ask(c.Context, c.String("containerd"), refs); err != nil && c.IsSet("containerd") {
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: warning: no names of images: %s\n", oneLine(err))
	}
	return n
}

func (n *imageNames) ask(ctx context.Context, address string, refs *snapshotter.Refs) error {
	address, err := filepath.Abs(address)
	if err != nil {
		return err
	}
	probe, err := net.DialTimeout("unix", address, time.Second)
	if err != nil {
		return err
	}
	probe.Close()
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer shut(conn)
	ctx, cancel := context.WithTimeout(ctx, namesWait)
	defer cancel()
	spaces := make(map[string]bool)
	for _, names := range refs.Layers {
		for _, s := range names {
			ns, _, ok := splitSnapshot(s)
			if !ok || spaces[ns] {
				continue
			}
			spaces[ns] = true
			if err := n.namespace(ctx, conn, ns); err != nil {
				return err
			}
		}
	}
	return nil
}

// splitSnapshot splits containerd's NAMESPACE/NUMBER/CHAINID.
func splitSnapshot(name string) (ns, chain string, ok bool) {
	ns, _, ok = strings.Cut(name, "/")
	return ns, path.Base(name), ok && strings.HasPrefix(path.Base(name), "sha256:")
}

// namespace notes the images of one namespace.
func (n *imageNames) namespace(ctx context.Context, conn *grpc.ClientConn, ns string) error {
	ctx = namespaces.WithNamespace(ctx, ns)
	list, err := imagesapi.NewImagesClient(conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	provider := content.NewContentStore(conn)
	for _, i := range list.Images {
		if i.Target == nil {
			continue
		}
		target := ocispec.Descriptor{MediaType: i.Target.MediaType, Digest: digest.Digest(i.Target.Digest), Size: i.Target.Size}
		config, err := images.Config(ctx, provider, target, platforms.Default())
		if err != nil {
			continue // not all of it is here, or not for this platform
		}
		diffs, err := images.RootFS(ctx, provider, config)
		if err != nil || len(diffs) == 0 {
			continue
		}
		name := nameJSON{escape(ns), escape(i.Name)}
		for _, c := range identity.ChainIDs(slices.Clone(diffs)) {
			k := ns + " " + c.String()
			n.with[k] = append(n.with[k], name)
		}
		k := ns + " " + identity.ChainID(diffs).String()
		n.top[k] = append(n.top[k], name)
	}
	return nil
}

// of returns the images that need one of the snapshots, or with top, that are
// one of them.
func (n *imageNames) of(snapshots []string, top bool) []nameJSON {
	m := n.with
	if top {
		m = n.top
	}
	var out []nameJSON
	for _, s := range snapshots {
		ns, chain, ok := splitSnapshot(s)
		if !ok {
			continue
		}
		for _, name := range m[ns+" "+chain] {
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.SortFunc(out, func(a, b nameJSON) int { return strings.Compare(a.Name+" "+a.Namespace, b.Name+" "+b.Namespace) })
	return out
}

func joinNames(names []nameJSON) string {
	var out []string
	for _, n := range names {
		out = append(out, n.String())
	}
	return strings.Join(out, ", ")
}
