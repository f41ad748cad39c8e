package main

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An image that is being pulled is found by any of its chains before it has a
// name in containerd, with the labels that containerd's own handlers give.
func TestImageOf(t *testing.T) {
	k, _ := newKeptImages(t)
	ctx := namespaces.WithNamespace(t.Context(), "one")
	_, chains := k.image("one", "example.com/app:1", "base", "app")
	if _, err := findImage(ctx, k.store, chains[1]); !errdefs.IsNotFound(err) {
		t.Fatalf("before anybody knows where it came from: %v", err)
	}
	source, err := docker.AppendDistributionSourceLabel(k.store, "example.com/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := k.images.Get(ctx, "example.com/app:1")
	if err != nil {
		t.Fatal(err)
	}
	var manifest digest.Digest
	children := images.SetChildrenLabels(k.store, images.ChildrenHandler(k.store))
	there := images.HandlerFunc(func(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if _, err := k.store.Info(ctx, desc.Digest); err != nil {
			return nil, images.ErrSkipDesc // another platform's
		}
		if images.IsManifestType(desc.MediaType) {
			manifest = desc.Digest
		}
		return nil, nil
	})
	if err := images.Walk(ctx, images.Handlers(there, children, source), img.Target); err != nil {
		t.Fatal(err)
	}
	want := "example.com/team/app@" + manifest.String()
	for _, c := range chains {
		if got, err := findImage(ctx, k.store, c); err != nil || got != want {
			t.Errorf("chain %s: %q, %v, want %q", c, got, err, want)
		}
	}
	if got, err := findImage(ctx, k.store, digest.FromString("other")); !errdefs.IsNotFound(err) {
		t.Errorf("another chain: %q, %v", got, err)
	}
	if got, err := findImage(namespaces.WithNamespace(t.Context(), "two"), k.store, chains[0]); !errdefs.IsNotFound(err) {
		t.Errorf("another namespace: %q, %v", got, err)
	}
	if got := sourceOf(content.Info{Digest: "sha256:1", Labels: map[string]string{labelSource + "b.example": "x,y", labelSource + "c.example": ""}}); got != "b.example/x@sha256:1" {
		t.Errorf("source %q", got)
	}
}
