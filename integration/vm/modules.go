package vm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// moduleIndex knows a kernel's modules and what each needs loaded before it, as
// depmod wrote it. Names have "_" for "-".
type moduleIndex struct {
	path    map[string]string   // by name
	needs   map[string][]string // names, by name
	builtin map[string]bool
}

func readModuleIndex(dir string) (*moduleIndex, error) {
	x := &moduleIndex{path: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{}}
	deps, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(deps)) {
		path, needs, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		name := moduleName(path)
		x.path[name] = filepath.Join(dir, path)
		for _, need := range strings.Fields(needs) {
			x.needs[name] = append(x.needs[name], moduleName(need))
		}
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(builtin)) {
		x.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return x, nil
}

func (x *moduleIndex) has(name string) bool { return x.path[moduleName(name)] != "" }

// moduleName is a module's name from its path, or from how people write it.
func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// loadOrder is a list of modules' paths, each after those it needs.
type loadOrder struct{ paths []string }

// add adds the module unless it is there or built into the kernel.
func (l *loadOrder) add(x *moduleIndex, name string) {
	name = moduleName(name)
	path, ok := x.path[name]
	if !ok || slices.Contains(l.paths, path) {
		return
	}
	for _, need := range x.needs[name] {
		l.add(x, need)
	}
	l.paths = append(l.paths, path)
}
