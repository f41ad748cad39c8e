// Package registry serves OCI image layouts over the distribution protocol
// straight from their files: nothing is hashed or copied on the way, so that
// pulls from it can be measured. It takes pushes too, if asked to.
package registry

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is an http.Handler for /v2/NAME/manifests/REF and /v2/NAME/blobs/DIGEST.
type Registry struct {
	mu      sync.Mutex
	layouts map[string]string // repository name -> layout directory
	blobs   []digest.Digest   // asked for with GET, in order
	hook    func(digest.Digest)
	pushes  string // directory for them, or ""
}

// New returns a registry without repositories.
func New() *Registry { return &Registry{layouts: map[string]string{}} }

// Add serves the layout in dir as repository name. Its tags are the ref names
// in the layout's index.
func (r *Registry) Add(name, dir string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.layouts[name] = dir
}

// Blobs returns the digests of all blobs fetched since the last call.
func (r *Registry) Blobs() []digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.blobs
	r.blobs = nil
	return b
}

// OnBlob calls f at the start of every GET of a blob, for tests that need a
// pull to be half way. nil ends it.
func (r *Registry) OnBlob(f func(digest.Digest)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = f
}

// Serve listens on a free loopback port. It returns the address to pull from
// and a function that ends the server.
func (r *Registry) Serve() (addr string, stop func(), err error) { return r.ServeAt("127.0.0.1:0") }

// ServeAt is Serve at an address.
func (r *Registry) ServeAt(address string) (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.Serve(l) }() // ends with Close
	// Clients take plain HTTP for granted only on loopback names.
	return l.Addr().String(), func() { _ = s.Close() }, nil
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		r.push(w, req)
		return
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, req)
		return
	}
	if path == "" { // "does this server speak the protocol?"
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, "{}")
		return
	}
	parts := strings.Split(path, "/")
	if len(parts) < 3 {
		http.NotFound(w, req)
		return
	}
	n := len(parts)
	name, kind, ref := strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]
	r.mu.Lock()
	dir, ok := r.layouts[name]
	r.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", name)
		return
	}
	switch kind {
	case "manifests":
		r.manifest(w, req, dir, ref)
	case "blobs":
		r.blob(w, req, dir, ref)
	default:
		http.NotFound(w, req)
	}
}

func (r *Registry) manifest(w http.ResponseWriter, req *http.Request, dir, ref string) {
	d, err := digest.Parse(ref)
	if err != nil {
		if d, err = resolve(dir, ref); err != nil {
			fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", err.Error())
			return
		}
	}
	b, err := os.ReadFile(blobPath(dir, d))
	if err != nil {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", ref)
		return
	}
	// Every manifest of our layouts states its own media type.
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(b, &m); err != nil || m.MediaType == "" {
		fail(w, http.StatusNotFound, "MANIFEST_INVALID", ref)
		return
	}
	w.Header().Set("Content-Type", m.MediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	if req.Method == http.MethodGet {
		_, _ = w.Write(b)
	}
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, dir, ref string) {
	d, err := digest.Parse(ref)
	if err != nil {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", ref)
		return
	}
	f, err := os.Open(blobPath(dir, d))
	if err != nil {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", ref)
		return
	}
	defer f.Close()
	if req.Method == http.MethodGet {
		r.mu.Lock()
		r.blobs = append(r.blobs, d)
		hook := r.hook
		r.mu.Unlock()
		if hook != nil {
			hook(d)
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, req, "", time.Time{}, f) // answers Range and HEAD
}

func resolve(dir, tag string) (digest.Digest, error) {
	b, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return "", err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return "", err
	}
	for _, m := range index.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] == tag {
			return m.Digest, nil
		}
	}
	return "", fmt.Errorf("tag %s: %w", tag, fs.ErrNotExist)
}

// blobPath takes a parsed digest, whose parts hold neither '/' nor "..".
func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"errors": []map[string]string{{"code": code, "message": message}},
	})
}
