package images

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
)

// benchRecipes are the images of the pull benchmark, made only when they are
// asked for by name: the first of each takes minutes. Their layers are gzip, as
// most in registries are, and zstd in those called so.
var benchRecipes = func() []recipe {
	r := []recipe{
		{"bench-debian", 1, "debian", recompress(Gzip)},
		{"bench-debian-zstd", 1, "bench-debian", recompress(Zstd)},
		{"bench-python", 1, "bench-debian", makeBenchPython},
		{"bench-python-zstd", 1, "bench-python", recompress(Zstd)},
		{"bench-llvm", 1, "bench-debian", makeBenchLLVM},
		{"bench-npm", 1, "bench-debian", makeBenchNPM},
	}
	for i, name := range Related {
		r = append(r, recipe{name, 1, "bench-debian", makeRelated(i)})
	}
	return r
}()

// Related is twenty small services that were built from the same few lines at
// different times: one base, the same interpreter installed anew in each, and a
// library and a program of its own.
var Related = func() []string {
	var names []string
	for i := range relatedLibraries {
		names = append(names, fmt.Sprintf("bench-related%02d", i))
	}
	return names
}()

// relatedLibraries are Debian packages, one for each of Related.
var relatedLibraries = []string{
	"flask", "bottle", "tornado", "redis", "yaml", "requests", "jinja2", "aiohttp", "click", "psutil",
	"paho-mqtt", "pymysql", "psycopg2", "ldap3", "markdown", "lxml", "cryptography", "dateutil", "attr", "pygments",
}

// recompress makes an image with the same layers as its base, all compressed
// the same way.
func recompress(c Compression) func(context.Context, *maker) error {
	return func(_ context.Context, m *maker) error {
		for i, layer := range m.layers {
			again, err := m.addLayer(c, func(w io.Writer) error {
				r, err := m.Open(layer)
				if err != nil {
					return err
				}
				defer r.Close()
				_, err = io.Copy(w, r)
				return err
			})
			if err != nil {
				return err
			}
			if again.Digest != layer.Digest {
				if err := os.Remove(m.BlobPath(layer.Digest)); err != nil {
					return err
				}
			}
			m.layers[i] = again
		}
		return m.finish(m.layers, []string{"/bin/bash"}, nil)
	}
}

// install is a layer of Debian packages.
func install(packages ...string) step {
	return step{Gzip, "apt-get install -y -qq --no-install-recommends " + strings.Join(packages, " ") + " >/dev/null"}
}

// makeBenchPython: what a data scientist has, a gigabyte.
func makeBenchPython(ctx context.Context, m *maker) error {
	return m.build(ctx, []step{
		install("python3"),
		install("python3-numpy", "python3-pandas"),
		install("python3-matplotlib"),
		install("python3-scipy"),
	}, []string{"python3"})
}

// makeBenchLLVM: a compiler with its libraries, a gigabyte mostly in large files.
func makeBenchLLVM(ctx context.Context, m *maker) error {
	return m.build(ctx, []step{
		install("libllvm14", "llvm-14"),
		install("clang-14", "lld-14"),
		install("llvm-14-dev"),
	}, []string{"clang-14", "--version"})
}

// npmPackages bring along a thousand others.
const npmPackages = `{"name": "app", "version": "1.0.0", "private": true, "dependencies": {
	"@angular/cli": "17.3.8", "@babel/preset-env": "7.24.5", "@mui/icons-material": "5.15.18", "core-js": "3.37.1",
	"date-fns": "3.6.0", "eslint": "8.57.0", "jest": "29.7.0", "lodash": "4.17.21", "react": "18.3.1",
	"react-dom": "18.3.1", "rxjs": "7.8.1", "typescript": "5.4.5", "webpack": "5.91.0"
}}`

// makeBenchNPM: an interpreter, and a tree of tens of thousands of small files.
// The tree is made outside of the image with the machine's own npm: Debian's
// would bring hundreds of packages into it.
func makeBenchNPM(ctx context.Context, m *maker) error {
	if err := m.run(ctx, []step{install("nodejs")}); err != nil {
		return err
	}
	tree := filepath.Join(m.work, "tree")
	app := filepath.Join(tree, "srv/app")
	if err := os.MkdirAll(app, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(app, "package.json"), []byte(npmPackages), 0o644); err != nil {
		return err
	}
	err := command(ctx, "npm", "install", "--prefix", app, "--cache", filepath.Join(m.cache.Dir, "npm"),
		"--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps", "--loglevel=error")
	if err != nil {
		return err
	}
	layer, err := m.addLayer(Gzip, func(w io.Writer) error { return archive.WriteDiff(ctx, w, "", tree) })
	if err != nil {
		return err
	}
	m.layers = append(m.layers, layer)
	return m.finish(m.layers, []string{"node"}, nil)
}

// makeRelated makes the i-th of Related.
func makeRelated(i int) func(context.Context, *maker) error {
	return func(ctx context.Context, m *maker) error {
		return m.build(ctx, []step{
			install("python3", "python3-"+relatedLibraries[i]),
			{Gzip, fmt.Sprintf(`
mkdir /srv/app
for j in $(seq 1 20); do echo "def f(): return %[1]d * $j" >/srv/app/mod$j.py; done
python3 -m compileall -q /srv/app`, i)},
		}, []string{"python3"})
	}
}
