package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/config"
)

type doctorJSON struct {
	OK      bool
	Checks  []check
	Snippet string `json:"containerd_snippet"`
}

// find returns the check of that name.
func (d *doctorJSON) find(t *testing.T, name string) check {
	t.Helper()
	for _, c := range d.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q in %+v", name, d.Checks)
	return check{}
}

// containerdFile writes a configuration of containerd's, if there is a text.
func (s *site) containerdFile(text string) string {
	s.t.Helper()
	file := filepath.Join(s.dir, "containerd.toml")
	if text != "" {
		// Whatever runs on this machine is not asked.
		text = strings.NewReplacer("SOCKET", s.socket(), "ROOT", s.dir).Replace(text) + "\n[grpc]\naddress = \"" + s.dir + "/none.sock\"\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return file
}

// examine runs the whole doctor on a site.
func (s *site) examine(code int, containerd string, args ...string) *doctorJSON {
	s.t.Helper()
	d := &doctorJSON{}
	s.json(code, d, append([]string{"doctor", "--containerd-config", s.containerdFile(containerd)}, args...)...)
	return d
}

// check runs the whole doctor and returns one of its checks.
func (s *site) check(name string) check {
	s.t.Helper()
	d := &doctorJSON{}
	out, errOut, _ := s.ctl("doctor", "--json", "--containerd-config", s.containerdFile(""))
	if err := json.Unmarshal([]byte(out), d); err != nil {
		s.t.Fatalf("%v\n%s%s", err, out, errOut)
	}
	return d.find(s.t, name)
}

// containerd runs the doctor's checks of containerd.
func (s *site) containerd(text string) *doctorJSON {
	s.t.Helper()
	d := &doctor{
		ctx: s.t.Context(), containerdConfig: s.containerdFile(text), name: "daxfs",
		cfg: &config.Config{Root: s.dir, Address: s.socket(), Pool: config.Pool{Path: s.poolPath()}},
	}
	d.containerd()
	return &doctorJSON{Checks: d.checks, Snippet: d.snippet.String()}
}

const proxyTOML = `[proxy_plugins.daxfs]
type = "snapshot"
address = "SOCKET"
capabilities = ["rebase", "remap-ids"]
[proxy_plugins.daxfs.exports]
root = "ROOT"
`

const differTOML = `[proxy_plugins.daxfs-differ]
type = "diff"
address = "SOCKET"
[plugins.'io.containerd.service.v1.diff-service']
default = ["daxfs-differ", "walking"]
`

const unpackTOML = `[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = "linux"
snapshotter = "daxfs"
differ = "daxfs-differ"
`

// The differ is not needed, but what is lost without it is said.
func TestDoctorDiffer(t *testing.T) {
	s := newSite(t)
	s.serve()
	snapshotter := "version = 3\n" + proxyTOML
	for name, c := range map[string]struct {
		text           string
		differ, unpack verdict
		detail         string // of one of them
		snippet        []string
	}{
		"complete":      {snapshotter + unpackTOML + differTOML, ok, ok, "[proxy_plugins.daxfs-differ] names this daemon", nil},
		"no differ":     {snapshotter + strings.Replace(unpackTOML, "daxfs-differ", "walking", 1), warn, warn, "to disk", []string{`type = "diff"`, `default = ["daxfs-differ", "walking"]`}},
		"another's":     {snapshotter + unpackTOML + strings.Replace(differTOML, "SOCKET", "/elsewhere", 1), warn, ok, "to disk", []string{`type = "diff"`}},
		"another name":  {snapshotter + strings.ReplaceAll(unpackTOML+differTOML, "daxfs-differ", "ours"), ok, ok, "[proxy_plugins.ours]", nil},
		"not first":     {snapshotter + unpackTOML + strings.Replace(differTOML, `"daxfs-differ", "walking"`, `"walking", "daxfs-differ"`, 1), warn, ok, "clients that unpack for themselves", []string{`default = ["daxfs-differ", "walking"]`}},
		"walking":       {snapshotter + strings.Replace(unpackTOML, "daxfs-differ", "walking", 1) + differTOML, ok, warn, `with differ "walking"`, nil},
		"nothing there": {"version = 3\n", warn, fail, "", []string{`differ = "walking"`, `differ = "daxfs-differ"`, `type = "diff"`}},
	} {
		t.Run(name, func(t *testing.T) {
			d := s.containerd(c.text)
			df, u := d.find(t, "differ"), d.find(t, "transfer_unpack")
			if df.Status != c.differ || u.Status != c.unpack {
				t.Errorf("differ %s, transfer_unpack %s; want %s, %s", df.Status, u.Status, c.differ, c.unpack)
			}
			wants(t, df.Detail+u.Detail, c.detail)
			wants(t, d.Snippet, c.snippet...)
			if c.snippet == nil && d.Snippet != "" {
				t.Errorf("snippet where nothing is missing:\n%s", d.Snippet)
			}
			if name == "nothing there" {
				if again := s.containerd("version = 3\n" + d.Snippet); again.Snippet != "" || again.find(t, "differ").Status != ok {
					t.Errorf("after adding it, there is still missing:\n%s", again.Snippet)
				}
			}
		})
	}
}

func TestDoctorContainerdConfig(t *testing.T) {
	s := newSite(t)
	s.serve()
	for name, c := range map[string]struct {
		text          string
		proxy, unpack verdict
		detail        string // of one of them
		snippet       []string
	}{
		"complete":          {"version = 3\n" + proxyTOML + unpackTOML, ok, ok, "names this daemon", nil},
		"version 2":         {"version = 2\n" + proxyTOML + unpackTOML, ok, ok, "names this daemon", nil},
		"version 4":         {"version = 4\n" + proxyTOML + unpackTOML, ok, ok, "names this daemon", nil},
		"long type":         {"version = 3\n" + strings.Replace(proxyTOML, `"snapshot"`, `"io.containerd.snapshotter.v1"`, 1) + unpackTOML, ok, ok, "names this daemon", nil},
		"empty":             {"version = 3\n", fail, fail, "there is no [proxy_plugins.daxfs]", []string{"[proxy_plugins.daxfs]", `snapshotter = "overlayfs"`, `snapshotter = "daxfs"`}},
		"wrong type":        {"version = 3\n" + strings.Replace(proxyTOML, "snapshot", "diff", 1) + unpackTOML, fail, ok, `type is "diff"`, []string{"[proxy_plugins.daxfs]"}},
		"wrong address":     {"version = 3\n" + strings.Replace(proxyTOML, "SOCKET", "/elsewhere", 1) + unpackTOML, fail, ok, `address is "/elsewhere"`, []string{"[proxy_plugins.daxfs]"}},
		"wrong root":        {"version = 3\n" + strings.Replace(proxyTOML, "ROOT", "/elsewhere", 1) + unpackTOML, warn, ok, `exports.root is "/elsewhere"`, []string{"[proxy_plugins.daxfs]"}},
		"no capabilities":   {"version = 3\n" + strings.Replace(proxyTOML, `"rebase", "remap-ids"`, "", 1) + unpackTOML, warn, ok, `lack "rebase"`, []string{"rebase"}},
		"no unpack":         {"version = 3\n" + proxyTOML, ok, fail, "no unpack_config", []string{`snapshotter = "overlayfs"`, `snapshotter = "daxfs"`}},
		"unpack of another": {"version = 3\n" + proxyTOML + strings.Replace(unpackTOML, "daxfs", "overlayfs", 1), ok, fail, "no unpack_config", []string{`snapshotter = "daxfs"`}},
		"another name":      {"version = 3\n" + strings.ReplaceAll(proxyTOML+unpackTOML, "daxfs", "other"), fail, fail, "there is no [proxy_plugins.daxfs]", nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := s.containerd(c.text + differTOML)
			p, u := d.find(t, "proxy_plugin"), d.find(t, "transfer_unpack")
			if df := d.find(t, "differ"); df.Status != ok {
				t.Errorf("differ: %+v", df)
			}
			if p.Status != c.proxy || u.Status != c.unpack {
				t.Errorf("proxy_plugin %s, transfer_unpack %s; want %s, %s", p.Status, u.Status, c.proxy, c.unpack)
			}
			wants(t, p.Detail+u.Detail, c.detail)
			wants(t, d.Snippet, c.snippet...)
			if c.snippet == nil && c.proxy == ok && d.Snippet != "" {
				t.Errorf("snippet where nothing is missing:\n%s", d.Snippet)
			}
			if name == "unpack of another" && strings.Contains(d.Snippet, "overlayfs") {
				t.Errorf("snippet repeats what is there:\n%s", d.Snippet)
			}
			if d.Snippet == "" || name == "another name" {
				return
			}
			// What it says to add helps: alone where nothing else was, or in
			// place of the section.
			fixed := "version = 3\n" + differTOML + d.Snippet
			if c.unpack == ok {
				fixed += unpackTOML
			}
			if c.proxy == ok {
				fixed += proxyTOML
			}
			if again := s.containerd(fixed); again.Snippet != "" {
				t.Errorf("after adding it, there is still missing:\n%s", again.Snippet)
			}
		})
	}
}

// A pool in memory is filled again from what containerd keeps, or from a copy of
// its own: one of them has to be there.
func TestDoctorDiscardedLayers(t *testing.T) {
	s := newSite(t)
	const cri = "version = 3\n[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = "
	for _, c := range []struct {
		name              string
		discard           string
		volatile, persist bool
		want              verdict // "": nothing to say
	}{
		{"lost", "true", true, false, warn},
		{"kept by containerd", "false", true, false, ""},
		{"copied", "true", true, true, ""},
		{"on disk", "true", false, false, ""},
		{"wrong", "'yes'", true, false, fail},
	} {
		d := &doctor{
			ctx: t.Context(), containerdConfig: s.containerdFile(cri + c.discard + "\n"), name: "daxfs", volatile: c.volatile,
			cfg: &config.Config{Root: s.dir, Address: s.socket(), Containerd: s.dir + "/none.sock", Pool: config.Pool{Path: s.poolPath(), Persist: c.persist}},
		}
		d.containerd()
		var got verdict
		for _, k := range d.checks {
			if k.Name == "discarded_layers" {
				got = k.Status
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q: %+v", c.name, got, c.want, d.checks)
		}
	}
}

// What becomes of a pool in memory in a reboot depends on where copies are.
func TestDoctorMemory(t *testing.T) {
	s := newSite(t)
	memory, err := os.MkdirTemp("/dev/shm", "dxctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memory) })
	s.close()
	pool := filepath.Join(memory, "pool")
	b, err := os.ReadFile(s.poolPath())
	if err == nil {
		err = os.WriteFile(pool, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		containerd string
		persist    bool
		status     verdict
		want       string
	}{
		{"", false, warn, "it is in memory only"},
		{"/none.sock", false, ok, "unpacked again from what containerd keeps"},
		{"", true, ok, "with copies in "},
	} {
		d := &doctor{ctx: t.Context(), cfg: &config.Config{
			Root: s.dir, Containerd: c.containerd, Pool: config.Pool{Path: pool, Persist: c.persist, ShareExtents: true, MaxSize: 64 << 20},
		}}
		d.pool()
		if got := (&doctorJSON{Checks: d.checks}).find(t, "pool"); got.Status != c.status || !strings.Contains(got.Detail, c.want) {
			t.Errorf("%+v, want %s and %q", got, c.status, c.want)
		}
	}
}

func TestDoctorWithoutContainerdConfig(t *testing.T) {
	s := newSite(t)
	d := s.examine(1, "", "--name", "mine")
	if c := d.find(t, "containerd_config"); c.Status != fail {
		t.Errorf("%+v", c)
	}
	wants(t, d.Snippet, "version = 3\n\n[proxy_plugins.mine]\n", `address = "`+s.socket()+`"`, `root = "`+s.dir+`"`)
	out, _, code := s.ctl("doctor", "--containerd-config", s.dir+"/none")
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, out, "FAIL", "-> ", "To be added to "+s.dir+"/none:", "[proxy_plugins.daxfs]", "problem")
}

func TestDoctorBadContainerdConfig(t *testing.T) {
	s := newSite(t)
	d := s.containerd("version = 3 4\n")
	if c := d.find(t, "containerd_config"); c.Status != fail || !strings.Contains(c.Detail, "row 1") {
		t.Errorf("%+v", c)
	}
}

func TestDoctorDaemonAndPool(t *testing.T) {
	s := newSite(t)
	s.serve()
	const all = "version = 3\n" + proxyTOML + unpackTOML
	d := s.examine(0, all)
	if c := d.find(t, "daemon"); c.Status != ok || !strings.Contains(c.Detail, s.socket()) {
		t.Errorf("%+v", c)
	}
	if c := d.find(t, "pool"); c.Status != ok || !strings.Contains(c.Detail, "2 layers, 0 images") {
		t.Errorf("%+v", c)
	}
	// The test's server is not careful with the socket.
	if err := os.Chmod(s.socket(), 0o666); err != nil {
		t.Fatal(err)
	}
	if c := s.examine(0, all).find(t, "socket_mode"); c.Status != warn || !strings.Contains(c.Detail, "0666") {
		t.Errorf("%+v", c)
	}
	s.server.Stop()
	s.server = nil
	if c := s.examine(1, all).find(t, "daemon"); c.Status != fail || !strings.Contains(c.Remedy, "has the pool open: is --address right?") {
		t.Errorf("%+v", c)
	}
	s.close()
	if c := s.examine(1, all).find(t, "daemon"); c.Status != fail || !strings.Contains(c.Remedy, "systemctl start") {
		t.Errorf("%+v", c)
	}

	// Damage that costs one record, and damage that costs the pool.
	off := int64(4096 + 40) // key of the first record
	if err := flip(s.poolPath(), off); err != nil {
		t.Fatal(err)
	}
	if c := s.examine(1, all).find(t, "pool"); c.Status != warn || !strings.Contains(c.Detail, "1 record in quarantine") {
		t.Errorf("%+v", c)
	}
	if err := flip(s.poolPath(), 20); err != nil {
		t.Fatal(err)
	}
	if c := s.examine(1, all).find(t, "pool"); c.Status != fail || c.Remedy == "" {
		t.Errorf("%+v", c)
	}
	if err := os.Remove(s.poolPath()); err != nil {
		t.Fatal(err)
	}
	if c := s.examine(1, all).find(t, "pool"); c.Status != ok || !strings.Contains(c.Detail, "first start") {
		t.Errorf("%+v", c)
	}
}

// Each engine has a line, with the reason and the remedy of the better ones
// that do not work, and the end counts.
func TestDoctorEngines(t *testing.T) {
	s := newSite(t)
	s.serve()
	const all = "version = 3\n" + proxyTOML + unpackTOML
	d := s.examine(0, all)
	if c := d.find(t, "engine_erofs"); c.Status == fail || !strings.HasPrefix(c.Detail, "mounts by ") {
		t.Errorf("%+v", c)
	}
	for name, want := range map[string]string{"engine_daxfs": "has no physical address", "engine_erofs-dax": "not a pmem device"} {
		if c := d.find(t, name); c.Status != warn || !strings.HasPrefix(c.Detail, "no: ") || !strings.Contains(c.Detail, want) || c.Remedy == "" {
			t.Errorf("%+v", c)
		}
	}
	// Memory that is not there is no pool, and no engine.
	d = s.examine(1, all, "--pool", "/dev/pmem99")
	if c := d.find(t, "engine"); c.Status != fail || !strings.Contains(c.Detail, "no such file") {
		t.Errorf("%+v", c)
	}
	if c := d.find(t, "pool"); c.Status != fail || !strings.Contains(c.Remedy, "device that is not there") {
		t.Errorf("%+v", c)
	}
}

// A pool keeps what it was made with.
func TestDoctorShareExtents(t *testing.T) {
	s := bareSite(t)
	file := filepath.Join(s.dir, "other.toml")
	text := "root = \"" + s.dir + "\"\naddress = \"" + s.socket() + "\"\n[pool]\nmax_size = \"64MiB\"\nshare_extents = false\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, code := ctl("doctor", "--config", file, "--containerd-config", s.dir+"/none")
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, out, "was made with share_extents = true, the configuration has false")
}

func TestDoctorBadOwnConfig(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("rooot = '/x'"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, code := ctl("doctor", "--config", file, "--containerd-config", dir+"/none")
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, out, "FAIL  config", `unknown key "rooot" in line 1`)
}

// Nothing of its trials is left.
func TestDoctorLeavesNothing(t *testing.T) {
	s := newSite(t)
	s.close()
	s.ctl("doctor", "--containerd-config", s.dir+"/none")
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

const containerdExample = "../../containerd-config.toml.example"

// The example file is what the doctor would add for the default configuration,
// and the doctor has nothing to say against it.
func TestContainerdExample(t *testing.T) {
	b, err := os.ReadFile(containerdExample)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	squeeze := func(text string) string {
		text = regexp.MustCompile(`(?m)^[ \t]*#.*\n`).ReplaceAllString(text, "")
		return strings.TrimSpace(regexp.MustCompile(`\n\n+`).ReplaceAllString(text, "\n\n"))
	}
	want := squeeze("version = 3\n\n" + proxySnippet("daxfs", cfg) + "\n" + differSnippet("daxfs-differ", cfg) + "\n" +
		unpackSnippet("linux", "overlayfs", "walking") + "\n" + unpackSnippet("linux(+daxfs)", "daxfs", "daxfs-differ"))
	if got := squeeze(string(b)); got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", containerdExample, got, want)
	}
	d := &doctor{ctx: t.Context(), cfg: cfg, containerdConfig: containerdExample, name: "daxfs"}
	d.containerd()
	for _, c := range d.checks {
		if c.Name != "containerd" && c.Status != ok {
			t.Errorf("%+v", c)
		}
	}
}

func TestKernelAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"5.19.0": true, "5.18.19-amd64": false, "6.1.0-18-cloud-amd64": true, "4.19": false, "10.0": true, "unknown": false,
	} {
		if kernelAtLeast(release, 5, 19) != want {
			t.Errorf("%s: %v", release, !want)
		}
	}
}
