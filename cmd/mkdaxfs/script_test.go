package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

var packTime = time.Unix(1_700_000_000, 123456789)

// tarOf archives the tree below dir. Files named *.fifo, *.char, *.null and
// *.block become such nodes.
func tarOf(ts *testscript.TestScript, dir string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	fatalIf(ts, filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		hdr := &tar.Header{Name: rel, Mode: 0o644, Uid: 1, Gid: 2, ModTime: packTime, Format: tar.FormatPAX}
		var content []byte
		switch {
		case fi.IsDir():
			hdr.Typeflag, hdr.Mode = tar.TypeDir, 0o755
		case strings.HasSuffix(rel, ".fifo"):
			hdr.Typeflag = tar.TypeFifo
		case strings.HasSuffix(rel, ".null"):
			hdr.Typeflag = tar.TypeChar
		case strings.HasSuffix(rel, ".char"):
			hdr.Typeflag, hdr.Devmajor, hdr.Devminor = tar.TypeChar, 1, 3
		case strings.HasSuffix(rel, ".block"):
			hdr.Typeflag, hdr.Devmajor, hdr.Devminor = tar.TypeBlock, 8, 1
		case fi.Mode()&os.ModeSymlink != 0:
			hdr.Typeflag = tar.TypeSymlink
			if hdr.Linkname, err = os.Readlink(p); err != nil {
				return err
			}
		default:
			if content, err = os.ReadFile(p); err != nil {
				return err
			}
			hdr.Size = int64(len(content))
			if strings.HasSuffix(rel, ".xattr") {
				hdr.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "kept"}
			}
		}
		if err := w.WriteHeader(hdr); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	}))
	fatalIf(ts, w.Close())
	return buf.Bytes()
}

func compressed(ts *testscript.TestScript, how string, plain []byte) []byte {
	var buf bytes.Buffer
	c, ok := map[string]compression.Compression{"plain": compression.Uncompressed, "gzip": compression.Gzip, "zstd": compression.Zstd}[how]
	if !ok {
		ts.Fatalf("unknown compression %q", how)
	}
	w, err := compression.CompressStream(&buf, c)
	fatalIf(ts, err)
	_, err = w.Write(plain)
	fatalIf(ts, err)
	fatalIf(ts, w.Close())
	return buf.Bytes()
}

// cmdPack is `pack plain|gzip|zstd FILE DIR`.
func cmdPack(ts *testscript.TestScript, neg bool, args []string) {
	fatalIf(ts, os.WriteFile(ts.MkAbs(args[1]), compressed(ts, args[0], tarOf(ts, ts.MkAbs(args[2]))), 0o666))
}

// cmdMkOCI is `mkoci LAYOUT NAME PLATFORM COMPRESSION DIR...`: adds an image
// whose layers are the directories. The same name with several platforms makes
// an image index.
func cmdMkOCI(ts *testscript.TestScript, neg bool, args []string) {
	dir, name, plat, how := ts.MkAbs(args[0]), args[1], args[2], args[3]
	blob := func(mediaType string, b []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		p := filepath.Join(dir, "blobs/sha256", d.Digest.Encoded())
		fatalIf(ts, os.MkdirAll(filepath.Dir(p), 0o777))
		fatalIf(ts, os.WriteFile(p, b, 0o666))
		return d
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		fatalIf(ts, err)
		return b
	}
	osName, arch, _ := strings.Cut(plat, "/")
	platform := ocispec.Platform{OS: osName, Architecture: arch}
	config := ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	mediaType := ocispec.MediaTypeImageLayer
	if how != "plain" {
		mediaType += "+" + how
	}
	for _, l := range args[4:] {
		b := tarOf(ts, ts.MkAbs(l))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(b))
		manifest.Layers = append(manifest.Layers, blob(mediaType, compressed(ts, how, b)))
	}
	manifest.Config = blob(ocispec.MediaTypeImageConfig, encode(config))
	desc := blob(ocispec.MediaTypeImageManifest, encode(manifest))

	var top ocispec.Index
	if b, err := os.ReadFile(filepath.Join(dir, "index.json")); err == nil {
		fatalIf(ts, json.Unmarshal(b, &top))
	}
	top.SchemaVersion = 2
	at := -1
	for i, d := range top.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == name {
			at = i
		}
	}
	if at < 0 {
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: name}
		top.Manifests = append(top.Manifests, desc)
	} else {
		var index ocispec.Index
		b, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", top.Manifests[at].Digest.Encoded()))
		fatalIf(ts, err)
		if top.Manifests[at].MediaType == ocispec.MediaTypeImageIndex {
			fatalIf(ts, json.Unmarshal(b, &index))
		} else {
			old := top.Manifests[at]
			old.Annotations = nil
			index.Manifests = append(index.Manifests, old)
		}
		desc.Platform = &platform
		index.SchemaVersion, index.MediaType = 2, ocispec.MediaTypeImageIndex
		index.Manifests = append(index.Manifests, desc)
		top.Manifests[at] = blob(ocispec.MediaTypeImageIndex, encode(index))
		top.Manifests[at].Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	fatalIf(ts, os.WriteFile(filepath.Join(dir, "index.json"), encode(top), 0o666))
	fatalIf(ts, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o666))
}

// biggestBlob is what `flip` and `cut` take for DIR/: the blob of a layer.
func target(ts *testscript.TestScript, name string) string {
	p := ts.MkAbs(name)
	fi, err := os.Stat(p)
	fatalIf(ts, err)
	if !fi.IsDir() {
		return p
	}
	best, size := "", int64(-1)
	entries, err := os.ReadDir(p)
	fatalIf(ts, err)
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Size() > size {
			best, size = filepath.Join(p, e.Name()), fi.Size()
		}
	}
	return best
}

// cmdFlip is `flip FILE|DIR OFFSET`: changes one bit; in a directory, of its
// largest file. A negative offset counts from the end.
func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	p := target(ts, args[0])
	b, err := os.ReadFile(p)
	fatalIf(ts, err)
	at, err := strconv.Atoi(args[1])
	fatalIf(ts, err)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	fatalIf(ts, os.WriteFile(p, b, 0o666))
}

// cmdCut is `cut FILE|DIR BYTES`: takes bytes off the end.
func cmdCut(ts *testscript.TestScript, neg bool, args []string) {
	p := target(ts, args[0])
	fi, err := os.Stat(p)
	fatalIf(ts, err)
	n, err := strconv.ParseInt(args[1], 10, 64)
	fatalIf(ts, err)
	fatalIf(ts, os.Truncate(p, fi.Size()-n))
}

// cmdMounted is `mounted DIR OPTIONS`: mounts a tmpfs till the script ends.
func cmdMounted(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	fatalIf(ts, os.MkdirAll(dir, 0o777))
	fatalIf(ts, unix.Mount("tmpfs", dir, "tmpfs", 0, args[1]))
	ts.Defer(func() { fatalIf(ts, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// cmdSignal is `signal NAME mkdaxfs ARGS...`: feeds the command an endless
// file on standard input, sends it the signal, and wants exit code 1.
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	sig := map[string]syscall.Signal{"INT": unix.SIGINT, "TERM": unix.SIGTERM, "KILL": unix.SIGKILL}[args[0]]
	bin, err := exec.LookPath("mkdaxfs")
	fatalIf(ts, err)
	cmd := exec.Command(bin, args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=")
	in, err := cmd.StdinPipe()
	fatalIf(ts, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	fatalIf(ts, cmd.Start())
	w := tar.NewWriter(in)
	fatalIf(ts, w.WriteHeader(&tar.Header{Name: "endless", Typeflag: tar.TypeReg, Size: 1 << 40}))
	// More than all buffers between here and the image file.
	_, err = io.CopyN(w, neverZero{}, 16<<20)
	fatalIf(ts, err)
	fatalIf(ts, cmd.Process.Signal(sig))
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the state says more
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		ts.Fatalf("still running 10 s after the signal")
	}
	if sig != unix.SIGKILL {
		if code := cmd.ProcessState.ExitCode(); code != 1 {
			ts.Fatalf("exit code %d, want 1", code)
		}
		if want := "mkdaxfs: interrupted, nothing was written\n"; stderr.String() != want {
			ts.Fatalf("stderr %q, want %q", stderr.String(), want)
		}
	}
}

type neverZero struct{}

func (neverZero) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i) | 1
	}
	return len(p), nil
}
