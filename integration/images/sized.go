package images

import (
	"context"
	"fmt"
	"os"
)

// Sized are two images with as many files, of 50 MB and of 1 GB: what takes
// longer with the second depends on the size.
var Sized = []string{"sized50", "sized1000"}

// makeSized makes an image of 100 files of that many bytes beside the test's
// program. The layer is not compressed: emulated guests are slow.
func makeSized(bytes int) func(context.Context, *maker) error {
	return func(_ context.Context, m *maker) error {
		prog, err := os.ReadFile(m.cache.TestProg)
		if err != nil {
			return err
		}
		err = m.tar(None, func(t *layerTar) {
			t.dir("bin")
			t.file("bin/true", string(prog), mode(0o755))
			t.dir("data")
			for i := range 100 {
				t.file(fmt.Sprintf("data/%d", i), noise(uint64(i), bytes))
			}
		})
		if err != nil {
			return err
		}
		return m.finish(m.layers, []string{"/bin/true"}, nil)
	}
}
