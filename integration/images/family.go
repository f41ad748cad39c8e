package images

import (
	"context"
	"fmt"
	"io"
	"time"
)

// makeFamily makes the i-th image of the family: a layer with the same forty
// files in every image, but with other mtimes, so that it is another layer; a
// layer with a copy of one of those files and something of its own.
func makeFamily(i int) func(context.Context, *maker) error {
	return func(_ context.Context, m *maker) error {
		built := time.Unix(1650000000+int64(i)*86400, 0)
		err := m.tar(Gzip, func(t *layerTar) {
			t.dir("opt/runtime", mtime(built))
			for j := range 40 {
				t.file(fmt.Sprintf("opt/runtime/lib%d.so", j), noise(uint64(j), 100_000), mode(0o755), mtime(built))
			}
		})
		if err != nil {
			return err
		}
		err = m.tar(Gzip, func(t *layerTar) {
			t.dir("srv", mtime(built))
			t.file("srv/plugin.so", noise(7, 100_000), mtime(built))
			t.file("srv/own", noise(1000+uint64(i), 300_000), mtime(built))
			t.file("srv/name", fmt.Sprintf("family %d\n", i), mtime(built))
		})
		if err != nil {
			return err
		}
		return m.finish(m.layers, []string{"/bin/bash"}, nil)
	}
}

// tar appends a layer that fill writes.
func (m *maker) tar(c Compression, fill func(*layerTar)) error {
	layer, err := m.addLayer(c, func(w io.Writer) error {
		t := newLayerTar(w)
		fill(t)
		return t.close()
	})
	m.layers = append(m.layers, layer)
	return err
}
