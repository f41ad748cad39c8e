package inside

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"os"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
)

// ConfigEnv names the environment variable that holds the path of the Config.
const ConfigEnv = "DAXFS_INSIDE"

// Config says what is there to be tested. It is a JSON file.
type Config struct {
	// FS is "daxfs", or "erofs" for those tests that hold on the EROFS view.
	FS string
	// Kernel is "6.1", "6.12" or "7.3" in a guest, "host" outside.
	Kernel string
	// Phys and Size are the pool's physical range in bytes.
	Phys, Size uint64
	// Images by name: ImageNative and so on.
	Images map[string]Image
	// File is a copy of the native image: what EROFS, the second opinion,
	// mounts.
	File string
	// SmallFile is an image file of the same tree without its many and large
	// files, to be put into other memory. SmallManifest says what is in it, its
	// places as bytes of the file.
	SmallFile, SmallManifest string
	// Module is the path of daxfs.ko.
	Module string
}

// Image is one image of the pool.
type Image struct {
	Offset   int64  // of the superblock, bytes from the pool's start
	Manifest string // path of a Manifest, in gob: names are bytes, which JSON would damage
	Live     int64  // place of the file Live, bytes from the pool's start
}

// The images of the pool.
const (
	// ImageNative is self-contained, with an EROFS view, at an address that is
	// a multiple of 4 KiB and not of 2 MiB.
	ImageNative = "native"
	// ImageV8 is self-contained, in the public module's dialect; it lacks what
	// that cannot say. It is at V8At and has V8Room bytes to itself.
	ImageV8 = "v8"
	// ImagePool has its data elsewhere in the pool, where ImageTwin uses it too.
	ImagePool = "pool"
	// ImageTwin is the directory "data" of the same tree.
	ImageTwin = "twin"
	// ImageDebian is a Debian root file system with Python, in the pool.
	ImageDebian = "debian"
	// ImageTorn is a copy of the first half of a superblock: no image.
	ImageTorn = "torn"
)

// Where the v8 image is, in bytes: a place that could be a region of its own.
const (
	V8At   = 128 << 20
	V8Room = 120 << 20
)

// Manifest is what an image was made of.
type Manifest struct {
	// Tree is what the source directory showed on the host. Nil for ImageDebian.
	Tree fstree.Tree
	// Extents are the places of the regular files' data by path, bytes from the
	// pool's start. Empty files have none.
	Extents map[string]int64
}

// Write stores c as JSON.
func (c *Config) Write(path string) error {
	b, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// readConfig reads what Write stored.
func readConfig(path string) (*Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c := new(Config)
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Write stores m in gob.
func (m *Manifest) Write(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	if err := gob.NewEncoder(w).Encode(m); err != nil {
		f.Close()
		return err
	}
	if err := w.Flush(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// readManifest reads what Write stored.
func readManifest(path string) (*Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := new(Manifest)
	if err := gob.NewDecoder(bufio.NewReader(f)).Decode(m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}
