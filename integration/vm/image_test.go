package vm

import (
	"encoding/binary"
	"strings"
	"testing"
)

func TestPayload(t *testing.T) {
	image := func(offset, length uint32) []byte {
		b := make([]byte, 4096)
		b[0x1f1] = 2 // real-mode code of 3 × 512 bytes
		copy(b[0x202:], "HdrS")
		binary.LittleEndian.PutUint32(b[0x248:], offset)
		binary.LittleEndian.PutUint32(b[0x24c:], length)
		copy(b[3*512+100:], "packed")
		return b
	}
	got, err := payload(image(100, 10))
	if err != nil || string(got) != "packed" {
		t.Errorf("payload %q, %v, want packed", got, err)
	}
	if got, err := payload(image(0, 4096-3*512)); err != nil || len(got) != 4096-3*512-4 {
		t.Errorf("payload up to the end: %d bytes, %v", len(got), err)
	}
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"no header":  {make([]byte, 4096), "no kernel image in 4096 bytes"},
		"short":      {make([]byte, 100), "no kernel image in 100 bytes"},
		"past end":   {image(100, 4096-3*512-99), "outside an image of 4096 bytes"},
		"far offset": {image(0xffffffff, 0xffffffff), "outside an image of 4096 bytes"},
		"no length":  {image(100, 3), "outside an image"},
	} {
		if got, err := payload(c.image); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v, want an error with %q", name, got, err, c.want)
		}
	}
}
