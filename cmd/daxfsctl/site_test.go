package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// site is a daemon's root with a pool and snapshots in it.
type site struct {
	t      *testing.T
	dir    string
	pool   *daxmem.Pool
	sn     *snapshotter.Snapshotter
	server *grpc.Server
	top    string // lines before the first section of the configuration
	more   string // lines of [pool]
	share  string // and of [share]
	keep   snapshotter.Keep
}

// noEngine mounts nothing, which nothing here looks at.
type noEngine struct{}

func (noEngine) Name() string                                    { return "none" }
func (noEngine) Probe(context.Context, engine.Pool) engine.Probe { return engine.Probe{} }
func (noEngine) Mount(_ context.Context, _ engine.Source, target string) (*engine.Mount, error) {
	return &engine.Mount{Engine: "none", Method: "pretended", Target: target}, nil
}

// newSite makes a site with two chains: base, and app on base. Containers can
// be put on them with run.
func newSite(t *testing.T) *site {
	t.Helper()
	s := bareSite(t)
	s.open()
	base := s.layer("", map[string]string{"bin/tool": "tool", "etc/conf": "one", "shared": strings.Repeat("x", 10000)})
	s.layer(base, map[string]string{"app/main": "main", "app/shared": strings.Repeat("x", 10000)})
	return s
}

// bareSite makes a site with an empty pool whose daemon has stopped.
func bareSite(t *testing.T) *site {
	t.Helper()
	testutil.Root(t) // the snapshotter gives directories their owners
	// A socket's path is short, t.TempDir's is not.
	dir, err := os.MkdirTemp("", "dxctl")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: dir}
	t.Cleanup(func() {
		s.close()
		os.RemoveAll(dir)
	})
	s.open()
	s.close()
	return s
}

func (s *site) poolPath() string { return filepath.Join(s.dir, "pool.daxfs") }
func (s *site) socket() string   { return filepath.Join(s.dir, "d.sock") }

// open starts a daemon's parts, without its socket.
func (s *site) open() {
	s.t.Helper()
	var err error
	ctx := context.Background()
	if s.pool, err = daxmem.OpenOrCreate(ctx, s.poolPath(), daxmem.Options{MaxSize: 64 << 20}); err != nil {
		s.t.Fatal(err)
	}
	if s.sn, err = snapshotter.New(ctx, snapshotter.Options{Root: s.dir, Pool: s.pool, Engine: noEngine{}, Keep: s.keep}); err != nil {
		s.t.Fatal(err)
	}
}

// serve makes the daemon answer on its socket.
func (s *site) serve() {
	s.t.Helper()
	l, err := net.Listen("unix", s.socket())
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(s.server, snapshotservice.FromSnapshotter(s.sn))
	go func(server *grpc.Server) { _ = server.Serve(l) }(s.server)
}

func (s *site) close() {
	s.t.Helper()
	if s.server != nil {
		s.server.Stop()
		s.server = nil
	}
	if s.sn == nil {
		return
	}
	if err := s.sn.Close(); err != nil {
		s.t.Error(err)
	}
	if err := s.pool.Close(); err != nil {
		s.t.Error(err)
	}
	s.sn = nil
}

// chainID is what containerd would call a chain: any digest will do.
func chainID(parent string, n int) string {
	return digest.FromString(fmt.Sprint(parent, n)).String()
}

// layer commits a snapshot with files on top of a parent, as an unpack does,
// and returns its name.
func (s *site) layer(parent string, files map[string]string) string {
	s.t.Helper()
	return s.layerAs(chainID(parent, len(files)), parent, files)
}

// layerAs is layer with a chain ID.
func (s *site) layerAs(id, parent string, files map[string]string) string {
	s.t.Helper()
	ctx := context.Background()
	key, name := "test/1/extract-1-x "+id, "test/2/"+id
	mounts, err := s.sn.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": id}))
	if err != nil {
		s.t.Fatal(err)
	}
	upper := ""
	for _, m := range mounts {
		for _, o := range m.Options {
			if d, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = d
			}
		}
	}
	for path, content := range files {
		p := filepath.Join(upper, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.sn.Commit(ctx, name, key); err != nil {
		s.t.Fatal(err)
	}
	return name
}

// names of the two chains of newSite.
func baseName() string { return "test/2/" + chainID("", 3) }
func appName() string  { return "test/2/" + chainID(baseName(), 2) }

// run puts a view on a chain.
func (s *site) run(name, parent string) {
	s.t.Helper()
	if _, err := s.sn.View(context.Background(), name, parent); err != nil {
		s.t.Fatal(err)
	}
}

// orphan publishes a layer that no snapshot has.
func (s *site) orphan() {
	s.t.Helper()
	ctx := context.Background()
	imp, err := s.pool.NewImport(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	e, err := imp.Put(ctx, strings.NewReader("nobody's"), 8)
	if err != nil {
		s.t.Fatal(err)
	}
	root := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755}
	root.Set("orphan", &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: 8, Extent: mkdaxfs.Extent{Offset: e.Offset, Digest: e.Digest}})
	l, err := mkdaxfs.NewLayout(&mkdaxfs.Tree{Root: root}, mkdaxfs.Options{Layer: true})
	if err != nil {
		s.t.Fatal(err)
	}
	k, err := l.LayerKey()
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := imp.PublishLayer(ctx, k, disk.BlockSize+l.MetaSize(), s.build(l), daxmem.RecordMeta{Entries: 1, DataBytes: 8}); err != nil {
		s.t.Fatal(err)
	}
}

// orphanChain publishes a chain that no snapshot has.
func (s *site) orphanChain() {
	s.t.Helper()
	if _, err := s.pool.PublishChain(context.Background(), [32]byte{1}, s.pool.Records()[0].Key, [32]byte{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) build(l *mkdaxfs.Layout) daxmem.BuildFunc {
	return func(off int64) ([]byte, error) {
		super, meta, err := l.Emit(mkdaxfs.Place{Super: off, Meta: off + disk.BlockSize, End: s.pool.Size()})
		return append(super, meta...), err
	}
}

// ctl runs daxfsctl on the site.
func (s *site) ctl(args ...string) (out, errOut string, code int) {
	s.t.Helper()
	var o, e bytes.Buffer
	args = append([]string{"daxfsctl", "--config", filepath.Join(s.dir, "config.toml")}, args...)
	text := fmt.Sprintf("root = %q\naddress = %q\n%s\n[pool]\nmax_size = \"64MiB\"\n%s\n[share]\n%s\n", s.dir, s.socket(), s.top, s.more, s.share)
	if err := os.WriteFile(filepath.Join(s.dir, "config.toml"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	code = run(context.Background(), args, &o, &e)
	return o.String(), e.String(), code
}

// good is ctl for what must work.
func (s *site) good(args ...string) string {
	s.t.Helper()
	out, errOut, code := s.ctl(args...)
	if code != 0 || errOut != "" {
		s.t.Fatalf("daxfsctl %q: status %d\n%s%s", args, code, out, errOut)
	}
	return out
}

// json is ctl with --json.
func (s *site) json(code int, v any, args ...string) {
	s.t.Helper()
	out, errOut, got := s.ctl(append(args, "--json")...)
	if got != code {
		s.t.Fatalf("daxfsctl %q: status %d, want %d\n%s%s", args, got, code, out, errOut)
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		s.t.Fatalf("daxfsctl %q: %v\n%s", args, err, out)
	}
}

// wants fails the test where text lacks one of the words.
func wants(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("does not say %q:\n%s", w, text)
		}
	}
}
