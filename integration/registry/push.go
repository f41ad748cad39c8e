package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AcceptPushes takes what clients push to repositories that were not added, into
// layouts below dir. Blobs and manifests are checked against their digests; that
// what a manifest names is there, as a registry does too.
func (r *Registry) AcceptPushes(dir string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pushes = dir
}

// push answers the requests of a push: an upload in one piece, or a manifest.
func (r *Registry) push(w http.ResponseWriter, req *http.Request) {
	parts := strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
	n := len(parts)
	r.mu.Lock()
	pushes := r.pushes
	r.mu.Unlock()
	if pushes == "" || n < 3 {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
		return
	}
	switch {
	case req.Method == http.MethodPost && n > 3 && parts[n-3] == "blobs" && parts[n-2] == "uploads":
		w.Header().Set("Location", req.URL.Path+"one")
		w.WriteHeader(http.StatusAccepted)
	case req.Method == http.MethodPut && n > 3 && parts[n-3] == "blobs" && parts[n-2] == "uploads":
		dir, err := r.layout(pushes, strings.Join(parts[:n-3], "/"))
		d := digest.Digest(req.URL.Query().Get("digest"))
		if err == nil {
			err = store(dir, d, req.Body)
		}
		answer(w, d, err)
	case req.Method == http.MethodPut && parts[n-2] == "manifests":
		dir, err := r.layout(pushes, strings.Join(parts[:n-2], "/"))
		var d digest.Digest
		if err == nil {
			d, err = storeManifest(dir, parts[n-1], req)
		}
		answer(w, d, err)
	default:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", req.Method+" "+req.URL.Path)
	}
}

func answer(w http.ResponseWriter, d digest.Digest, err error) {
	if err != nil {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

// layout returns the layout of a repository that can be pushed to.
func (r *Registry) layout(pushes, name string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	dir := filepath.Join(pushes, strings.ReplaceAll(name, "/", "_"))
	if known, ok := r.layouts[name]; ok {
		if known != dir {
			return "", fmt.Errorf("repository %s is read-only", name)
		}
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return "", err
	}
	r.layouts[name] = dir
	return dir, nil
}

// store keeps a blob if it is what its digest says.
func store(dir string, d digest.Digest, body io.Reader) error {
	if err := d.Validate(); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "upload-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	v := d.Verifier()
	if _, err := io.Copy(f, io.TeeReader(body, v)); err != nil {
		return err
	}
	if !v.Verified() {
		return fmt.Errorf("what was sent is not %s", d)
	}
	return os.Rename(f.Name(), blobPath(dir, d))
}

// storeManifest keeps a manifest or an index of which everything is there, and
// names it if ref is a tag.
func storeManifest(dir, ref string, req *http.Request) (digest.Digest, error) {
	b, err := io.ReadAll(req.Body)
	if err != nil {
		return "", err
	}
	var m struct {
		MediaType string               `json:"mediaType"`
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return "", err
	}
	if m.MediaType != req.Header.Get("Content-Type") {
		return "", fmt.Errorf("content type %q, the manifest says %q", req.Header.Get("Content-Type"), m.MediaType)
	}
	needs := append(m.Layers, m.Manifests...)
	if m.Config != nil {
		needs = append(needs, *m.Config)
	}
	for _, n := range needs {
		if fi, err := os.Stat(blobPath(dir, n.Digest)); err != nil || fi.Size() != n.Size {
			return "", errors.Join(fmt.Errorf("%s with %d bytes was not pushed before", n.Digest, n.Size), err)
		}
	}
	d := digest.FromBytes(b)
	if given, err := digest.Parse(ref); err == nil && given != d {
		return "", fmt.Errorf("manifest is %s, not %s", d, given)
	}
	if err := os.WriteFile(blobPath(dir, d), b, 0o644); err != nil {
		return "", err
	}
	if _, err := digest.Parse(ref); err == nil {
		return d, nil
	}
	return d, tag(dir, ref, ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(b))})
}

// tag makes the layout's index say that ref is d.
func tag(dir, ref string, d ocispec.Descriptor) error {
	path := filepath.Join(dir, ocispec.ImageIndexFile)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	if b, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(b, &index); err != nil {
			return err
		}
	}
	d.Annotations = map[string]string{ocispec.AnnotationRefName: ref}
	kept := []ocispec.Descriptor{d}
	for _, o := range index.Manifests {
		if o.Annotations[ocispec.AnnotationRefName] != ref {
			kept = append(kept, o)
		}
	}
	index.Manifests = kept
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
