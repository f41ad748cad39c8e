package snapshotter_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

const memoryVar = "DAXFS_TEST_MEMORY_ROOT"

// TestImportMemory imports a layer of 1 GiB, from a directory, from an archive and
// from a DAXFS image, which it makes too, in processes of their own, whose resident memory must stay below 100 MB at all
// times.
func TestImportMemory(t *testing.T) {
	if root := os.Getenv(memoryVar); root != "" {
		importOnly(t, root, filepath.Base(root))
		return
	}
	testutil.Root(t)
	if testing.Short() {
		t.Skip("writes 1 GiB")
	}
	for _, from := range []string{"directory", "archive", "image"} {
		t.Run(from, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), from)
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			defer testutil.UnmountBelow(t, root)
			cmd := exec.Command(os.Args[0], "-test.run", "^TestImportMemory$", "-test.v")
			cmd.Env = append(os.Environ(), memoryVar+"="+root)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			m := regexp.MustCompile(`peak (\d+) kB`).FindSubmatch(out)
			if m == nil {
				t.Fatalf("no figure in\n%s", out)
			}
			peak, err := strconv.ParseInt(string(m[1]), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("resident memory peaked at %d kB", peak)
			if limit := int64(100 << 20 >> 10); peak > limit && !raceEnabled {
				t.Errorf("resident memory peaked at %d kB, want at most %d", peak, limit)
			}
		})
	}
}

// gibibyte calls file for 20,000 files of 10 kB on average, and for the rest of
// 1 GiB in large ones.
func gibibyte(file func(name string, body io.Reader, size int64) error) error {
	random := rand.NewChaCha8([32]byte{2})
	left := int64(1 << 30)
	for i := 0; left > 0; i++ {
		size := int64(i%20) * 1024
		if i >= 20000 {
			size = min(left, 200<<20)
		}
		if err := file(fmt.Sprint("d", i/10, "/file-with-a-name-", i), io.LimitReader(random, size), size); err != nil {
			return err
		}
		left -= size
	}
	return nil
}

// importOnly is the other process.
func importOnly(t *testing.T, root, from string) {
	r, err := open(t, root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	key, mounts := prepare(t, r, "base", "")
	if from != "directory" {
		in, out := io.Pipe()
		go func() {
			w := tar.NewWriter(out)
			err := gibibyte(func(name string, body io.Reader, size int64) error {
				err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size})
				if err == nil {
					_, err = io.Copy(w, body)
				}
				return err
			})
			out.CloseWithError(errors.Join(err, w.Close()))
		}()
		u, err := r.Unpack(ctx, mounts)
		switch {
		case err != nil:
		case from == "image":
			image, out := io.Pipe()
			go func() { out.CloseWithError(streamImage(root, in, out)) }()
			_, _, err = u.ApplyImage(ctx, image)
		default:
			_, _, err = u.Apply(ctx, in)
		}
		if err != nil {
			t.Fatal(err)
		}
	} else if err := gibibyte(func(name string, body io.Reader, _ int64) error {
		path := filepath.Join(upperOf(mounts), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, body)
		return errors.Join(err, f.Close())
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx, "base", key); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prepare(ctx, "container", "base"); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Printf("peak %s\n", strings.TrimSpace(v))
		}
	}
}

// streamImage makes a DAXFS image of a layer.
func streamImage(dir string, layer io.Reader, image io.Writer) error {
	b, err := mkdaxfs.NewStreamBuilder(dir, mkdaxfs.BuildOptions{Share: true})
	if err != nil {
		return err
	}
	defer b.Close()
	tree, _, err := convert.FromTar(ctx, layer, b, convert.TarOptions{})
	if err != nil {
		return err
	}
	if tree, err = convert.Merge([]*mkdaxfs.Tree{tree}); err != nil {
		return err
	}
	_, err = b.Stream(ctx, tree, image)
	return err
}
