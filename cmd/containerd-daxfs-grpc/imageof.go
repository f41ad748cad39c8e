package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/internal/config"
)

// Labels that containerd gives to a manifest before it unpacks the image: the
// digest of the configuration (core/images, ChildGCLabels), and for each
// registry the repositories that it came from (core/remotes/docker,
// AppendDistributionSourceLabel).
const (
	labelConfig = "containerd.io/gc.ref.content.config"
	labelSource = "containerd.io/distribution.source."
)

// imageOf finds out what a client is pulling that does not say it in labels of
// snapshots; nil where there is no containerd to be asked.
func imageOf(cfg *config.Config) func(ctx context.Context, chainID digest.Digest) (string, error) {
	if cfg.Containerd == "" {
		return nil
	}
	return func(ctx context.Context, chainID digest.Digest) (name string, err error) {
		cl, err := client.New(cfg.Containerd, client.WithTimeout(dialWait))
		if err != nil {
			return "", fmt.Errorf("connect to containerd: %w", err)
		}
		defer func() { err = errors.Join(err, cl.Close()) }()
		return findImage(ctx, cl.ContentStore(), chainID)
	}
}

// findImage looks for a manifest whose configuration has the chain, and returns
// REGISTRY/REPOSITORY@DIGEST. A tag would be another image tomorrow.
func findImage(ctx context.Context, store content.Store, chainID digest.Digest) (string, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return "", err
	}
	ctx = namespaces.WithNamespace(ctx, ns)
	var manifests []content.Info
	if err := store.Walk(ctx, func(info content.Info) error {
		manifests = append(manifests, info)
		return nil
	}, fmt.Sprintf("labels.%q", labelConfig)); err != nil {
		return "", fmt.Errorf("look through containerd's content: %w", err)
	}
	// The one that is being pulled is the newest.
	slices.SortFunc(manifests, func(a, b content.Info) int { return b.UpdatedAt.Compare(a.UpdatedAt) })
	for _, m := range manifests {
		name := sourceOf(m)
		if name == "" {
			continue
		}
		config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.Digest(m.Labels[labelConfig])}
		diffIDs, err := images.RootFS(ctx, store, config)
		if err != nil {
			if !errdefs.IsNotFound(err) {
				log.G(ctx).WithError(err).WithField("manifest", m.Digest).Debug("read configuration of an image")
			}
			continue
		}
		if slices.Contains(identity.ChainIDs(diffIDs), chainID) {
			return name, nil
		}
	}
	return "", fmt.Errorf("no manifest in namespace %s has the chain %s and says where it came from: %w", ns, chainID, errdefs.ErrNotFound)
}

// sourceOf is where a manifest can be pulled from, "" if nobody knows.
func sourceOf(m content.Info) string {
	var names []string
	for k, v := range m.Labels {
		if host, ok := strings.CutPrefix(k, labelSource); ok && v != "" {
			repository, _, _ := strings.Cut(v, ",")
			names = append(names, host+"/"+repository+"@"+m.Digest.String())
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}
