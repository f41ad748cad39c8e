package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Module builds kmod for the kernel and returns the path of daxfs.ko, or what
// it built before from the same sources. Warnings of the compiler (W=1), of
// sparse and of modpost are errors.
func (k Kernel) Module(ctx context.Context) (string, error) {
	repo, err := repository()
	if err != nil {
		return "", err
	}
	return k.buildModule(ctx, filepath.Join(repo, "kmod"), "daxfs")
}

// buildModule builds the module of that name from the sources in dir.
func (k Kernel) buildModule(ctx context.Context, dir, name string) (string, error) {
	sources, err := readSources(dir)
	if err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(k.Root, "build.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()

	// The sources' digest is the directory's name; a stamp says that all of it
	// was built.
	work := filepath.Join("/build", name+"-"+sources.digest())
	outside := filepath.Join(k.Root, work)
	ko := filepath.Join(outside, name+".ko")
	stamp := filepath.Join(outside, "built")
	if _, err := os.Stat(stamp); err == nil {
		return ko, nil
	}
	if err := removeOld(filepath.Join(k.Root, "build"), time.Hour); err != nil {
		return "", err
	}
	// What is there without a stamp is half built.
	if err := os.RemoveAll(outside); err != nil {
		return "", err
	}
	if err := sources.write(outside); err != nil {
		return "", err
	}
	args := []string{"make", "-C", "/lib/modules/" + k.Release + "/build", "M=" + work, "W=1"}
	if k.sparse {
		args = append(args, "C=1")
	}
	out, err := chroot(ctx, k.Root, append(args, "modules")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s for %s: %w:\n%s", name, k.Release, err, out)
	}
	if w := warnings(string(out)); len(w) > 0 {
		return "", fmt.Errorf("build %s for %s: %d warnings:\n%s", name, k.Release, len(w), out)
	}
	if _, err := os.Stat(ko); err != nil {
		return "", fmt.Errorf("build %s for %s: %w:\n%s", name, k.Release, err, out)
	}
	return ko, os.WriteFile(stamp, nil, 0o644)
}

// removeOld removes what was made in dir longer than age ago: nobody whose
// boot reads it can be that slow.
func removeOld(dir string, age time.Duration) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		if time.Since(info.ModTime()) > age {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// warning matches what the compiler, make, modpost and sparse complain with;
// sparse says "error" and lets the build go on.
var warning = regexp.MustCompile(`(?i)\b(warning|error):`)

func warnings(output string) []string {
	var w []string
	for line := range strings.Lines(output) {
		if warning.MatchString(line) {
			w = append(w, strings.TrimSpace(line))
		}
	}
	return w
}

// moduleSources holds what kbuild needs of a directory, by path in it.
type moduleSources map[string][]byte

func readSources(dir string) (moduleSources, error) {
	s := moduleSources{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		base := filepath.Base(path)
		source := base == "Kbuild" || base == "Makefile" ||
			strings.HasSuffix(base, ".h") ||
			strings.HasSuffix(base, ".c") && !strings.HasSuffix(base, ".mod.c")
		if !source {
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		s[rel], err = os.ReadFile(path)
		return err
	})
	if err == nil && len(s) == 0 {
		err = fmt.Errorf("no sources in %s", dir)
	}
	return s, err
}

func (s moduleSources) digest() string {
	h := sha256.New()
	for _, path := range s.paths() {
		fmt.Fprintf(h, "%s %d\n", path, len(s[path]))
		h.Write(s[path])
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func (s moduleSources) write(dir string) error {
	for _, path := range s.paths() {
		name := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, s[path], 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (s moduleSources) paths() []string {
	var paths []string
	for path := range s {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}
