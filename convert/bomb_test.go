package convert

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// Archives of nothing but names end at a limit, which is about the memory that
// their tree takes: here they would go on for ever.
func TestTarBombs(t *testing.T) {
	const limit = 16 << 20
	for name, header := range map[string]func(i int) *tar.Header{
		"empty files": func(i int) *tar.Header { return &tar.Header{Name: fmt.Sprint("d/", i)} },
		"deep paths":  func(i int) *tar.Header { return &tar.Header{Name: fmt.Sprint(i) + strings.Repeat("/d", 1500)} },
		"whiteouts":   func(i int) *tar.Header { return &tar.Header{Name: fmt.Sprint("d/.wh.", i)} },
		"links below": func(i int) *tar.Header {
			return &tar.Header{Typeflag: tar.TypeLink, Name: fmt.Sprint("l", i), Linkname: fmt.Sprint("f", i)}
		},
		"attributes":     func(i int) *tar.Header { return withXattr(fmt.Sprint(i), "user.x", strings.Repeat("v", 60000)) },
		"odd attributes": func(i int) *tar.Header { return withXattr(fmt.Sprint(i), "odd.x", strings.Repeat("v", 60000)) },
	} {
		t.Run(name, func(t *testing.T) {
			r, w := io.Pipe()
			go func() {
				tw := tar.NewWriter(w)
				for i := 0; ; i++ {
					if err := tw.WriteHeader(header(i)); err != nil {
						return
					}
				}
			}()
			var before, peak runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			tree, _, err := FromTar(context.Background(), r, new(memStore), TarOptions{MaxMeta: limit})
			runtime.ReadMemStats(&peak)
			r.Close()
			if tree != nil || !errors.Is(err, ErrTooLarge) || !errdefs.IsOutOfRange(err) {
				t.Errorf("%v, want %v", err, ErrTooLarge)
			}
			if took := int64(peak.HeapAlloc) - int64(before.HeapAlloc); took > 4*limit {
				t.Errorf("took %d bytes of memory", took)
			}
		})
	}
}

func withXattr(name, key, value string) *tar.Header {
	return &tar.Header{Name: name, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr." + key: value}}
}
