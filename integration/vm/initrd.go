package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cavaliergopher/cpio"

	"github.com/daxfs/containerd-daxfs/integration/vm/protocol"
)

// initrd returns the archive that the guest starts from: the agent, its setup
// and the modules it loads.
func (m Machine) initrd(ctx context.Context) ([]byte, error) {
	agent, err := buildAgent(ctx)
	if err != nil {
		return nil, err
	}
	modules, err := m.modules(ctx)
	if err != nil {
		return nil, err
	}
	setup := protocol.Setup{
		ModuleDir: m.Kernel.Modules,
		Shared:    m.Shared,
		Hostname:  "lab-" + strings.ReplaceAll(m.Kernel.Name, ".", "-"),
		Path:      os.Getenv("PATH"),
	}

	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	add := func(name string, mode cpio.FileMode, content []byte) error {
		h := &cpio.Header{Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: int64(len(content)), Links: 1}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	if err := add("/init", cpio.TypeReg|0o755, agent); err != nil {
		return nil, err
	}
	for _, path := range modules {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		name := "/" + filepath.Base(path)
		if err := add(name, cpio.TypeReg|0o644, content); err != nil {
			return nil, err
		}
		setup.Modules = append(setup.Modules, name)
	}
	content, err := json.Marshal(setup)
	if err != nil {
		return nil, err
	}
	if err := add(protocol.SetupPath, cpio.TypeReg|0o644, content); err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}

var agent struct {
	sync.Mutex
	binary []byte
}

// buildAgent compiles the agent, once in a process.
func buildAgent(ctx context.Context) ([]byte, error) {
	agent.Lock()
	defer agent.Unlock()
	if agent.binary != nil {
		return agent.binary, nil
	}
	repo, err := repository()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "lab-agent-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "agent")
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", out, "./integration/vm/agent")
	cmd.Dir = repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the agent: %w: %s", err, msg)
	}
	agent.binary, err = os.ReadFile(out)
	return agent.binary, err
}

// modules returns the paths of the modules to load, in order.
func (m Machine) modules(ctx context.Context) ([]string, error) {
	index, err := readModuleIndex(m.Kernel.Modules)
	if err != nil {
		return nil, err
	}
	var load loadOrder
	for _, name := range defaultModules {
		if index.has(name) {
			load.add(index, name)
		}
	}
	further := m.Modules
	if m.NdPmem {
		further = append([]string{"nd_pmem"}, further...)
	}
	for _, name := range further {
		if !index.has(name) && !index.builtin[moduleName(name)] {
			return nil, fmt.Errorf("kernel %s has no module %q", m.Kernel.Release, name)
		}
		load.add(index, name)
	}
	if m.Daxfs {
		ko, err := m.Kernel.Module(ctx)
		if err != nil {
			return nil, err
		}
		load.paths = append(load.paths, ko)
	}
	return load.paths, nil
}
