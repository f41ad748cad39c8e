package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// newLab starts a containerd with CRI, as the suite's own scripts configure it
// (containerd script/test/utils.sh), with the stand-in images in its registry,
// and with a snapshotter as the default of CRI and of every namespace that the
// suite uses. With ours, our differ is the default too.
func newLab(t *testing.T, snapshotter string) *lab.Lab {
	t.Helper()
	c := lab.Config{CRI: func(l *lab.Lab) string { return criConfig(l, snapshotter) }}
	if snapshotter == lab.Daxfs {
		c.Rebase, c.RemapIDs, c.Parallel, c.KeepMounted = true, true, 4, true
	}
	l := lab.New(t, c)
	if snapshotter == lab.Daxfs {
		documented(t, l)
	}
	for _, name := range images.CRI {
		l.Image(name)
	}
	ctx := context.Background()
	for _, ns := range namespaces {
		err := l.Client().NamespaceService().Create(ctx, ns, nil)
		if err != nil && !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		// What containerd's client takes if it is not told.
		if err := l.Client().NamespaceService().SetLabel(ctx, ns, defaults.DefaultSnapshotterNSLabel, snapshotter); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// documented checks that containerd's configuration has all that
// docs/operating.md tells Kubernetes users to write, but for paths.
func documented(t *testing.T, l *lab.Lab) {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(lab.RepoRoot(), "docs", "operating.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(doc), "```toml\n")
	example, _, _ = strings.Cut(example, "```")
	for path, here := range map[string]string{
		"/run/containerd-daxfs/containerd-daxfs.sock": l.Socket(),
		"/var/lib/containerd-daxfs":                   l.Root(),
	} {
		if !strings.Contains(example, path) {
			t.Errorf("the example of docs/operating.md does not name %s", path)
		}
		example = strings.ReplaceAll(example, path, here)
	}
	has, err := os.ReadFile(filepath.Join(l.Dir, "containerd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	var want, got map[string]any
	if err := errors.Join(toml.Unmarshal([]byte(example), &want), toml.Unmarshal(has, &got)); err != nil {
		t.Fatal(err)
	}
	within(t, "", want, got)
}

// within checks that got has every key of want, with the same value.
func within(t *testing.T, path string, want, got map[string]any) {
	t.Helper()
	for k, w := range want {
		if table, ok := w.(map[string]any); ok {
			g, _ := got[k].(map[string]any)
			within(t, path+"."+k, table, g)
		} else if !reflect.DeepEqual(w, got[k]) {
			t.Errorf("%s.%s: docs/operating.md has %v, the lab %v", path, k, w, got[k])
		}
	}
}

// namespaces are those in which the suite, or what it starts, has images.
var namespaces = []string{"k8s.io", "default", "test", dockerNamespace}

func criConfig(l *lab.Lab, snapshotter string) string {
	bin := filepath.Join(lab.CacheDir(), "bin")
	cni := filepath.Join(l.Dir, "cni")
	for file, text := range map[string]string{
		"cni/10-lab.conflist":           bridge("bridge", "lab"),
		"cni-failpoint/10-lab.conflist": bridge("cni-bridge-fp", "lab-fp"),
		"certs.d/_default/hosts.toml":   "[host.\"http://" + strings.TrimSuffix(l.Ref(""), "/:latest") + "\"]\n",
	} {
		path := filepath.Join(l.Dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			panic(err) // the lab's own new directory
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			panic(err)
		}
	}
	return fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.images']
  snapshotter = %[6]q
  disable_snapshot_annotations = false
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = %[1]q
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = %[2]q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  drain_exec_sync_io_timeout = "10s"
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[3]q]
    conf_dir = %[4]q
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc-fp]
    runtime_type = "runc-fp.v1"
    cni_conf_dir = %[5]q
    cni_max_conf_num = 1
    pod_annotations = ["io.containerd.runtime.v2.shim.failpoint.*"]
[plugins.'io.containerd.nri.v1.nri']
  disable = false
  socket_path = "/var/run/nri-test.sock"
  plugin_path = "/no/pre-launched/nri/plugins"
`, l.Ref(images.CRI["Pause"]), filepath.Join(l.Dir, "certs.d"), bin, cni, cni+"-failpoint", snapshotter)
}

// bridge is a CNI network of IPv4 and IPv6 that leads nowhere.
func bridge(plugin, name string) string {
	b, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0",
		"name":       name,
		"plugins": []map[string]any{{
			"type":        plugin,
			"bridge":      name,
			"isGateway":   true,
			"promiscMode": true,
			"ipam": map[string]any{
				"type":   "host-local",
				"ranges": [][]map[string]string{{{"subnet": "10.88.0.0/16"}}, {{"subnet": "2001:4860:4860::/64"}}},
				"routes": []map[string]string{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
			},
			"capabilities": map[string]bool{"io.kubernetes.cri.pod-annotations": true},
		}},
	})
	if err != nil {
		panic(err) // it is all strings and bools
	}
	return string(b)
}

// imageList writes the suite's --image-list.
func imageList(t *testing.T, l *lab.Lab) string {
	t.Helper()
	var text strings.Builder
	for key, name := range images.CRI {
		fmt.Fprintf(&text, "%s = %q\n", key, l.Ref(name))
	}
	path := filepath.Join(l.Dir, "images.toml")
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// dockerNamespace is where the stand-in for docker has its images.
const dockerNamespace = "docker-standin"

// docker writes a stand-in for the docker that one of the tests takes an image
// from, and returns its directory.
func docker(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	const script = `#!/bin/sh
set -e
case $1 in
pull) exec ctr -n ` + dockerNamespace + ` content fetch --plain-http "$2" ;;
save) exec ctr -n ` + dockerNamespace + ` images export "$4" "$2" ;;
esac
exit 2
`
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
