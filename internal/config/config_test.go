package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/daxfs/containerd-daxfs/snapshotter"
)

const example = "../../config.toml.example"

func load(t *testing.T, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err == nil {
		err = c.Check()
	}
	return c, err
}

func TestExampleIsTheDefault(t *testing.T) {
	c, err := Load(example)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Engine.Order) == 0 {
		c.Engine.Order = nil // an empty list is no list
	}
	if want := Default(); !reflect.DeepEqual(c, want) {
		t.Errorf("config.toml.example says %+v, the default is %+v", c, want)
	}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
}

// Each field of the structs has a line in the example, with a comment above it.
func TestExampleHasEveryKey(t *testing.T) {
	b, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := toml.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	check(t, reflect.TypeFor[Config](), got, "")
	lines := strings.Split(string(b), "\n")
	for i, l := range lines {
		if strings.Contains(l, " = ") && !strings.HasPrefix(l, "#") && !strings.HasPrefix(lines[i-1], "# ") {
			t.Errorf("line %d has no comment above it: %s", i+1, l)
		}
	}
}

func TestShare(t *testing.T) {
	for text, want := range map[string]string{
		`role = "boss"`:        `share.role "boss", have owner, reader, auto`,
		`missing = "guess"`:    `share.missing "guess", have ask, local, fail`,
		`seat = 64`:            `share.seat is 64, want 0 to 63`,
		`ask_timeout = "soon"`: `duration "soon"`,
		`ask_timeout = "0s"`:   `share.ask_timeout is 0s`,
		`own_pool = "pool"`:    `share.own_pool "pool" is not an absolute path`,
		`instances = "kerf"`:   `share.instances: orchestrator "kerf": want multikernel`,
		`instance = "` + strings.Repeat("x", 65) + `"`: `share.instance`,
	} {
		_, err := load(t, "[share]\n"+text)
		if err == nil || !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	c, err := load(t, "[pool]\npath = \"phys:0x100000000,size=1GiB\"\n[share]\nrole = \"reader\"")
	if err != nil || c.Share.OwnPool != "/var/lib/containerd-daxfs/pool.daxfs" {
		t.Errorf("%+v, %v", c, err)
	}
}

// A reader's own pool can be looked into as the pool: only its daemon minds.
func TestOwnPoolIsAPool(t *testing.T) {
	c, err := load(t, "[pool]\npath = \"/var/lib/containerd-daxfs/pool.daxfs\"\n[share]\nrole = \"reader\"")
	if err != nil || c.Share.OwnPool != c.Pool.Path {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestOrchestrator(t *testing.T) {
	for text, want := range map[string]string{"": "", "multikernel": "multikernel, /sys/fs/multikernel", "multikernel:/mnt": "multikernel, /mnt"} {
		c, err := load(t, "[share]\ninstances = '"+text+"'")
		if err != nil {
			t.Fatal(err)
		}
		o, err := c.Share.Orchestrator()
		if err != nil || (o == nil) != (want == "") || o != nil && o.String() != want {
			t.Errorf("%q: %v, %v, want %q", text, o, err, want)
		}
	}
}

func check(t *testing.T, typ reflect.Type, got map[string]any, prefix string) {
	t.Helper()
	for i := range typ.NumField() {
		f := typ.Field(i)
		key := f.Tag.Get("toml")
		v, ok := got[key]
		if !ok {
			t.Errorf("key %s%s is not in the example", prefix, key)
			continue
		}
		if f.Type.Kind() == reflect.Struct {
			check(t, f.Type, v.(map[string]any), prefix+key+".")
		}
	}
}

func TestContainerd(t *testing.T) {
	if _, err := load(t, `containerd = "sock"`); err == nil || !strings.Contains(err.Error(), `containerd "sock" is not an absolute path`) {
		t.Errorf("relative: %v", err)
	}
	if c, err := load(t, `containerd = ""`); err != nil || c.Containerd != "" {
		t.Errorf("none: %+v, %v", c, err)
	}
}

func TestDefaultsBelowOtherRoot(t *testing.T) {
	c, err := load(t, `root = "/srv/daxfs/"`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/srv/daxfs" || c.Pool.Path != "/srv/daxfs/pool.daxfs" {
		t.Errorf("root %q, pool %q", c.Root, c.Pool.Path)
	}
}

func TestMissingFile(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was asked for and is not there: %v", err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		`"16MiB"`:      16 << 20,
		`"64GiB"`:      64 << 30,
		`"64GB"`:       64 << 30,
		`"1.5TiB"`:     3 << 39,
		`"20m"`:        20 << 20,
		`17000000`:     17000000,
		`"1234567890"`: 1234567890,
	} {
		c, err := load(t, "[pool]\nmax_size = "+text)
		if err != nil {
			t.Errorf("max_size = %s: %v", text, err)
		} else if c.Pool.MaxSize != want {
			t.Errorf("max_size = %s: %d, want %d", text, c.Pool.MaxSize, want)
		}
	}
	b, err := Size(64 << 30).MarshalText()
	if err != nil || string(b) != "64GiB" {
		t.Errorf("64 GiB is written as %q, %v", b, err)
	}
}

func TestPoolLocations(t *testing.T) {
	for _, path := range []string{"/dev/pmem0", "/dev/shm/pool", "phys:0x140000000,size=4GiB"} {
		c, err := load(t, "[pool]\npath = '"+path+"'\nshare_extents = false")
		if err != nil || c.Pool.Path != path || c.Pool.ShareExtents {
			t.Errorf("%s: %+v, %v", path, c, err)
		}
	}
}

// Whatever is wrong, the message names the key, and the line where there is one.
func TestBad(t *testing.T) {
	long := "/" + strings.Repeat("x", 107)
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"unknown key":            {"rooot = '/x'", []string{`unknown key "rooot" in line 1`}},
		"unknown key in section": {"[pool]\n\nsize = 1", []string{`unknown key "pool.size" in line 3`}},
		"unknown section":        {"[pol]\npath = '/x'", []string{`unknown key "pol`}},
		"two unknown keys":       {"a = 1\nb = 2", []string{`"a" in line 1`, `"b" in line 2`}},
		"not TOML":               {"root = /x", []string{"line 1"}},
		"key twice":              {"root = '/a'\nroot = '/b'", []string{"root"}},
		"wrong type":             {"root = 5", []string{"root", "line 1"}},
		"wrong type of list":     {"[engine]\norder = 'erofs'", []string{"engine.order", "line 2"}},
		"relative root":          {"root = 'x'", []string{`root "x"`, "absolute"}},
		"empty root":             {"root = ''", []string{`root ""`, "absolute"}},
		"root with a comma":      {"root = '/a,b'", []string{`root "/a,b"`, "overlayfs"}},
		"root with a colon":      {"root = '/a:b'", []string{`root "/a:b"`, "overlayfs"}},
		"relative address":       {"address = 'x'", []string{`address "x"`, "absolute"}},
		"long address":           {"address = '" + long + "'", []string{"address", "108 bytes", "at most 107"}},
		"relative pool":          {"[pool]\npath = 'x'", []string{`pool.path`, `"x"`, "absolute"}},
		"memory without a size":  {"[pool]\npath = 'phys:0x140000000'", []string{"pool.path", "want phys:ADDRESS,size=SIZE"}},
		"memory of no address":   {"[pool]\npath = 'phys:1h,size=1GiB'", []string{"pool.path", `address "1h"`}},
		"unaligned memory":       {"[pool]\npath = 'phys:0x140000000,size=1MiB'", []string{"pool.path", "size 1048576", "2 MiB"}},
		"small pool":             {"[pool]\nmax_size = '16777215'", []string{"pool.max_size", "16777215", "16777216"}},
		"negative pool":          {"[pool]\nmax_size = -1", []string{"pool.max_size"}},
		"zero pool":              {"[pool]\nmax_size = 0", []string{"pool.max_size"}},
		"size without number":    {"[pool]\nmax_size = 'GiB'", []string{"max_size", "GiB", "line 2"}},
		"size of unknown unit":   {"[pool]\nmax_size = '5 parsecs'", []string{"max_size", "parsecs", "line 2"}},
		"fraction without unit":  {"[pool]\nmax_size = 1.5", []string{"pool.max_size"}},
		"unknown engine":         {"[engine]\norder = ['warp']", []string{"engine.order", `"warp"`, "erofs"}},
		"unknown log level":      {"log_level = 'loud'", []string{"log_level", `"loud"`, "debug"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, c.text)
			if err == nil {
				t.Fatal("was taken")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %q is no invalid argument", err)
			}
		})
	}
}

func TestWatermarks(t *testing.T) {
	for text, want := range map[string]snapshotter.Keep{
		"":                   {},
		"keep_unused = true": {High: 90, Low: 75},
		"keep_unused = true\nhigh_watermark = 100\nlow_watermark = 1": {High: 100, Low: 1},
		"keep_unused = true\nhigh_watermark = 75":                     {High: 75, Low: 75},
		"high_watermark = 80":                                         {},
	} {
		c, err := load(t, "[pool]\n"+text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if got := c.Pool.Keep(); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
	for _, text := range []string{
		"high_watermark = 101", "high_watermark = 74", "low_watermark = 0", "low_watermark = -5", "low_watermark = 91",
		"high_watermark = \"90%\"", "high_watermark = 90.5", "keep_unused = 1",
	} {
		if c, err := load(t, "[pool]\n"+text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want %v; %+v", text, err, errdefs.ErrInvalidArgument, c)
		}
	}
}
