package engine

import "os"

// File is a region of kind "file" that only has a path: an image file, or the
// place of a pool that is not made yet.
type File string

// ReadAt reads from the file.
func (f File) ReadAt(p []byte, off int64) (int, error) {
	r, err := os.Open(string(f))
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return r.ReadAt(p, off)
}

// Size is that of the file, or 0.
func (f File) Size() int64 {
	fi, err := os.Stat(string(f))
	if err != nil {
		return 0
	}
	return fi.Size()
}

// Kind returns "file".
func (f File) Kind() string { return "file" }

// Path returns the path.
func (f File) Path() string { return string(f) }

// Address returns 0.
func (f File) Address() uint64 { return 0 }
