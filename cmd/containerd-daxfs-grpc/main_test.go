package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

const mainVar = "DAXFS_TEST_MAIN"

// TestMain makes the test binary the daemon when a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv(mainVar) != "" {
		if file := os.Getenv(bootVar); file != "" {
			becomeKernel(file)
		}
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// syncBuffer is written by a process while the test reads it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// process is a daemon that runs.
type process struct {
	*exec.Cmd
	log  syncBuffer
	done chan struct{}
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	return launch(t, exec.Command(os.Args[0], args...))
}

// launch starts cmd, a command of this test binary, as the daemon.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, done: make(chan struct{})}
	p.Env = append(append(os.Environ(), mainVar+"=1"), cmd.Env...)
	p.Stdout, p.Stderr = &p.log, &p.log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Wait(); close(p.done) }()
	t.Cleanup(func() {
		_ = p.Process.Kill() // it may have ended
		<-p.done
		if t.Failed() {
			t.Logf("daemon %v:\n%s", cmd.Args, p.log.String())
		}
	})
	return p
}

func (p *process) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// end waits for the daemon and returns its exit status.
func (p *process) end(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the daemon does not end")
	}
	return p.ProcessState.ExitCode()
}

// site is a directory with a configuration for a daemon.
type site struct{ dir, config, socket, root string }

// newSite keeps out of t.TempDir: a socket's path is short.
func newSite(t *testing.T) site {
	t.Helper()
	dir, err := os.MkdirTemp("", "dxd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		testutil.UnmountBelow(t, dir)
		os.RemoveAll(dir)
	})
	s := site{dir: dir, config: filepath.Join(dir, "config.toml"), socket: filepath.Join(dir, "run", "s.sock"), root: filepath.Join(dir, "root")}
	s.write(t, s.config, s.root, s.socket, "")
	return s
}

func (s site) write(t *testing.T, file, root, socket, pool string) {
	t.Helper()
	text := fmt.Sprintf("root = %q\naddress = %q\n[pool]\npath = %q\nmax_size = \"64MiB\"\n", root, socket, pool)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ready waits until the daemon answers.
func (s site) ready(t *testing.T, p *process) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := s.ask()
		if err == nil {
			return
		}
		select {
		case <-p.done:
			t.Fatalf("the daemon ended with status %d", p.ProcessState.ExitCode())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon is not ready: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ask calls the service.
func (s site) ask() error {
	conn, err := grpc.NewClient("unix://"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "").Stat(ctx, "no such snapshot")
	if errdefs.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("stat of nothing: %w", err)
}

func TestWrongUse(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		f := filepath.Join(dir, "c.toml")
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, c := range []struct {
		name, text string
		args       []string
		code       int
		want       []string
	}{
		{"unknown key", "[pool]\nmaxsize = '1GiB'\n", nil, 1, []string{`unknown key "pool.maxsize" in line 2`}},
		{"bad value", "root = 'here'\n", nil, 1, []string{`root "here"`, "absolute"}},
		{"bad level", "log_level = 'loud'\n", nil, 1, []string{`log_level "loud"`}},
		{"bad flag value", "", []string{"--root", "here"}, 1, []string{`root "here"`}},
		{"bad level by flag", "", []string{"--log-level", "loud"}, 1, []string{`log_level "loud"`}},
		{"no such file", "", []string{"--config", dir + "/none"}, 1, []string{dir + "/none", "no such file"}},
		{"unknown option", "", []string{"--loud"}, 2, []string{"loud"}},
		{"argument", "", []string{"start"}, 2, []string{`unexpected argument "start"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, append([]string{"--config", write(c.text)}, c.args...)...)
			if code := p.end(t); code != c.code {
				t.Errorf("exit status %d, want %d", code, c.code)
			}
			for _, w := range append(c.want, "containerd-daxfs-grpc: ") {
				if !strings.Contains(p.log.String(), w) {
					t.Errorf("does not say %q:\n%s", w, p.log.String())
				}
			}
		})
	}
}

func TestStartAndStop(t *testing.T) {
	testutil.Root(t)
	s := newSite(t)
	p := start(t, "--config", s.config)
	s.ready(t, p)
	fi, err := os.Lstat(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket has mode %v, want a socket of 0600", fi.Mode())
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.end(t); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	if _, err := os.Lstat(s.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	if m := testutil.MountsBelow(t, s.dir); len(m) > 0 {
		t.Errorf("mounts are left: %v", m)
	}
	left, _ := filepath.Glob(s.root + "/.*")
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A daemon that was killed leaves its socket; the next one replaces it.
func TestStaleSocket(t *testing.T) {
	testutil.Root(t)
	s := newSite(t)
	p := start(t, "--config", s.config)
	s.ready(t, p)
	p.signal(t, syscall.SIGKILL)
	p.end(t)
	if _, err := os.Lstat(s.socket); err != nil {
		t.Fatalf("there is no stale socket: %v", err)
	}
	s.ready(t, start(t, "--config", s.config))
}

func TestSecondDaemon(t *testing.T) {
	testutil.Root(t)
	s := newSite(t)
	s.ready(t, start(t, "--config", s.config))
	at := func(name string) string { return filepath.Join(s.dir, name) }
	for _, c := range []struct {
		name               string
		root, socket, pool string
		want               []string
	}{
		{"same socket", at("root2"), s.socket, "", []string{s.socket, "another daemon serves there"}},
		{"same pool", at("root2"), at("2.sock"), s.root + "/pool.daxfs", []string{s.root + "/pool.daxfs", "another owner"}},
		{"same metadata", s.root, at("3.sock"), at("pool3"), []string{s.root + "/metadata.db", "another process"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.write(t, at("second.toml"), c.root, c.socket, c.pool)
			p := start(t, "--config", at("second.toml"))
			if code := p.end(t); code != 1 {
				t.Errorf("exit status %d, want 1", code)
			}
			for _, w := range c.want {
				if !strings.Contains(p.log.String(), w) {
					t.Errorf("does not say %q:\n%s", w, p.log.String())
				}
			}
			if c.socket != s.socket {
				if _, err := os.Lstat(c.socket); err == nil {
					t.Error("left its socket behind")
				}
			}
			if err := s.ask(); err != nil {
				t.Errorf("the first daemon suffered: %v", err)
			}
		})
	}
}

// What the configuration says of the pool and what is there do not go together:
// the daemon says so, starts nothing and changes nothing.
func TestPoolRefused(t *testing.T) {
	testutil.Root(t)
	s := newSite(t)
	p := start(t, "--config", s.config)
	s.ready(t, p)
	p.signal(t, syscall.SIGTERM)
	if code := p.end(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	garbage := filepath.Join(s.dir, "garbage")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("garbage "), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pool string
		want []string
	}{
		"other sharing": {"share_extents = false", []string{"pool.share_extents is false", "was made with true"}},
		"garbage":       {fmt.Sprintf("path = %q", garbage), []string{garbage, "not a pool", "daxfsctl pool create --force"}},
		"no reboot":     {"persist = true", []string{"pool.persist is true", s.root + "/pool.daxfs", "is not lost in a reboot"}},
		"watermarks":    {"low_watermark = 95", []string{"pool.low_watermark is 95", "high_watermark 90"}},
		"no device":     {`path = "/dev/pmem99"`, []string{"/dev/pmem99", "no such file"}},
		"RAM":           {`path = "phys:0x1000000,size=64MiB"`, []string{"System RAM"}},
		"half a range":  {`path = "phys:0x1000000"`, []string{"pool.path", "want phys:ADDRESS,size=SIZE"}},
		"wrong engines": {"[engine]\norder = [\"daxfs\", \"erofs-dax\"]", []string{"no engine can mount images", "daxfs: ", "no physical address", "erofs-dax: ", "not a pmem device"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(s.dir, "bad.toml")
			text := fmt.Sprintf("root = %q\naddress = %q\n[pool]\nmax_size = \"64MiB\"\n%s\n", s.root, s.socket, c.pool)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			p := start(t, "--config", file)
			if code := p.end(t); code != 1 {
				t.Errorf("exit status %d, want 1", code)
			}
			for _, w := range c.want {
				if !strings.Contains(p.log.String(), w) {
					t.Errorf("does not say %q:\n%s", w, p.log.String())
				}
			}
		})
	}
	if b, err := os.ReadFile(garbage); err != nil || !bytes.Equal(b, bytes.Repeat([]byte("garbage "), 1<<20)) {
		t.Errorf("the garbage was changed, %v", err)
	}
	s.ready(t, start(t, "--config", s.config))
}

// Something that is not a socket is not removed.
func TestSocketPathIsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listen(path); err == nil {
		_ = l.Close()
		t.Fatal("listens there")
	} else if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("error %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "mine" {
		t.Error("the file was changed")
	}
}

// systemd is told when the daemon is ready and when it stops.
func TestNotify(t *testing.T) {
	testutil.Root(t)
	s := newSite(t)
	addr := filepath.Join(s.dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", addr)
	p := start(t, "--config", s.config)
	read := func() string {
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1024)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := read(); got != "READY=1" {
		t.Errorf("first message %q", got)
	}
	if err := s.ask(); err != nil {
		t.Errorf("ready, but %v", err)
	}
	p.signal(t, syscall.SIGTERM)
	if got := read(); got != "STOPPING=1" {
		t.Errorf("second message %q", got)
	}
}
