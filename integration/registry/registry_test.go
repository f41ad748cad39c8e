package registry

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPullProtocol(t *testing.T) {
	dir := t.TempDir()
	put := func(b string) digest.Digest {
		d := digest.FromString(b)
		if err := os.MkdirAll(filepath.Dir(blobPath(dir, d)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(blobPath(dir, d), []byte(b), 0o644); err != nil {
			t.Fatal(err)
		}
		return d
	}
	manifest := fmt.Sprintf(`{"mediaType":%q}`, ocispec.MediaTypeImageManifest)
	m, blob := put(manifest), put("0123456789")
	index := fmt.Sprintf(`{"manifests":[{"digest":%q,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}`, m)
	if err := os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), []byte(index), 0o644); err != nil {
		t.Fatal(err)
	}

	r := New()
	r.Add("some/name", dir)
	addr, stop, err := r.Serve()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()

	for _, c := range []struct {
		method, path, rng string
		status            int
		body, media       string
	}{
		{"GET", "/v2/", "", 200, "{}", "application/json"},
		{"GET", "/v2/some/name/manifests/latest", "", 200, manifest, ocispec.MediaTypeImageManifest},
		{"HEAD", "/v2/some/name/manifests/latest", "", 200, "", ocispec.MediaTypeImageManifest},
		{"GET", "/v2/some/name/manifests/" + m.String(), "", 200, manifest, ocispec.MediaTypeImageManifest},
		{"GET", "/v2/some/name/blobs/" + blob.String(), "", 200, "0123456789", ""},
		{"GET", "/v2/some/name/blobs/" + blob.String(), "bytes=4-", 206, "456789", ""},
		{"HEAD", "/v2/some/name/blobs/" + blob.String(), "", 200, "", ""},
		{"GET", "/v2/some/name/manifests/none", "", 404, "", ""},
		{"GET", "/v2/some/name/blobs/sha256:../../x", "", 404, "", ""},
		{"GET", "/v2/other/manifests/latest", "", 404, "", ""},
		{"PUT", "/v2/some/name/manifests/latest", "", 405, "", ""},
	} {
		req, err := http.NewRequest(c.method, "http://"+addr+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.rng != "" {
			req.Header.Set("Range", c.rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: status %d, want %d", c.method, c.path, resp.StatusCode, c.status)
		}
		if c.status < 300 && string(body) != c.body {
			t.Errorf("%s %s: body %q, want %q", c.method, c.path, body, c.body)
		}
		if c.media != "" && resp.Header.Get("Content-Type") != c.media {
			t.Errorf("%s %s: media type %q", c.method, c.path, resp.Header.Get("Content-Type"))
		}
	}
	if got := r.Blobs(); len(got) != 2 || got[0] != blob {
		t.Errorf("request log %v, want the blob twice", got)
	}
	if got := r.Blobs(); got != nil {
		t.Errorf("request log not emptied: %v", got)
	}
}
