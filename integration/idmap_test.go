package integration

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// Containers in user namespaces see the image's owners, the host sees them
// shifted, and no file was copied or chowned for it.
func TestIDMapped(t *testing.T) {
	l := lab.New(t, lab.Config{RemapIDs: true})
	ctx := l.Namespace("idmap")
	l.Image("debian")
	img := l.MustPull(ctx, "debian", lab.Daxfs, lab.PullUnpack)
	plain := l.ViewTree(ctx, img, lab.Daxfs)
	sn := l.Client().SnapshotService(lab.Daxfs)

	start := func(id string, host uint32) *lab.Container {
		t.Helper()
		ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: host, Size: 65536}}
		c, err := l.StartContainer(ctx, img, lab.Daxfs, []string{"sleep", "1000"}, lab.ContainerOpts{
			Spec:      []oci.SpecOpts{oci.WithUserNamespace(ids, ids)},
			Container: []client.NewContainerOpts{client.WithNewSnapshot(id, img, client.WithUserNSRemapperLabels(ids, ids))},
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// Two mappings of one image, and an unmapped container, at once.
	a, b := start("a", 100000), start("b", 300000)
	c, err := l.StartContainer(ctx, img, lab.Daxfs, []string{"sleep", "1000"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []*lab.Container{a, b, c} {
		out, err := x.Exec(ctx, "stat", "-c", "%u:%g %a %n", "/etc/passwd", "/home/app", "/srv", "/etc/shadow")
		if want := "0:0 644 /etc/passwd\n4242:4242 755 /home/app\n4242:4242 2775 /srv\n0:42 640 /etc/shadow\n"; err != nil || out != want {
			t.Errorf("%s sees %v %q, want %q", x.ID(), err, out, want)
		}
	}
	for _, m := range []struct {
		c    *lab.Container
		id   string
		host uint32
	}{{a, "a", 100000}, {b, "b", 300000}} {
		got, err := fstree.Walk(m.c.RootFS(), fstree.Options{NoContent: true})
		if err != nil {
			t.Fatal(err)
		}
		shifted := fstree.Tree{}
		for p, e := range plain {
			e.UID, e.GID, e.SHA256 = e.UID+m.host, e.GID+m.host, ""
			shifted[p] = e
		}
		rest, _ := fstree.Excused(fstree.Diff(shifted, got), func(d fstree.Difference) (string, bool) {
			switch {
			case d.Path == "dev" || d.Path == "proc" || d.Path == "sys" || d.Path == "run" || d.Path == "." ||
				strings.HasPrefix(d.Path, "dev/"):
				return "mount points that runc makes", true
			case d.Field == "xattr:security.capability":
				return "file capabilities are shown with the user namespace's root", true
			}
			return "", false
		})
		if len(rest) > 0 {
			t.Errorf("%s: %d differences, image shifted by %d != container:\n%s", m.id, len(rest), m.host, fstree.Format(rest, 20))
		}
		usage, err := sn.Usage(ctx, m.id)
		if err != nil {
			t.Error(err)
		}
		if usage.Size > 256<<10 {
			t.Errorf("%s: the upper directory holds %d bytes: something was copied", m.id, usage.Size)
		}
		// What the container makes belongs to its mapped users.
		if out, err := m.c.Exec(ctx, "sh", "-c", "touch /made && chown 7:8 /made && echo x >>/etc/passwd"); err != nil {
			t.Errorf("%v %s", err, out)
		}
		made, err := fstree.Walk(m.c.RootFS()+"/made", fstree.Options{})
		if err != nil || made["."].UID != m.host+7 || made["."].GID != m.host+8 {
			t.Errorf("%s: a new file's owner on the host: %v %+v", m.id, err, made["."])
		}
	}
	if !lab.Standin() && len(l.ImageMountPoints()) != 1 {
		t.Errorf("image mounts: %q, want one", l.ImageMountPoints())
	}
	for _, x := range []*lab.Container{a, b} {
		if err := x.Stop(ctx); err != nil {
			t.Error(err)
		}
		if err := x.Delete(ctx, client.WithSnapshotCleanup); err != nil {
			t.Error(err)
		}
	}
	if err := c.Remove(ctx); err != nil {
		t.Error(err)
	}
	removeAll(t, l, ctx, []string{"debian"})
}
