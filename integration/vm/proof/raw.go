package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// rawFile is a file of docs/bench: a head that says how it was made, then one
// JSON object a line.
type rawFile struct {
	path string
	buf  bytes.Buffer
}

func newRawFile(ctx context.Context, path string) (*rawFile, error) {
	commit, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return nil, fmt.Errorf("git describe: %w", err)
	}
	cpu, err := cpuName()
	if err != nil {
		return nil, err
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	r := &rawFile{path: path}
	fmt.Fprintf(&r.buf, "command: proof %s\ncommit: %s\nmachine: %d CPUs (%s), Linux %s, %s; guests emulated by QEMU (TCG)\ndate: %s\n\n",
		strings.Join(os.Args[1:], " "), strings.TrimSpace(string(commit)), runtime.NumCPU(), cpu,
		strings.TrimSpace(string(release)), runtime.Version(), time.Now().UTC().Format(time.DateOnly))
	return r, nil
}

func cpuName() (string, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "model name"); ok {
			return strings.TrimLeft(name, "\t :"), nil
		}
	}
	return runtime.GOARCH, lines.Err()
}

// add appends one object.
func (r *rawFile) add(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	r.buf.Write(append(b, '\n'))
	return nil
}

// save replaces the file, now that all is measured.
func (r *rawFile) save() error {
	if err := os.MkdirAll(filepath.Dir(r.path), 0o755); err != nil {
		return err
	}
	tmp := r.path + ".tmp"
	if err := os.WriteFile(tmp, r.buf.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, r.path)
}

// readRaw returns the objects of a raw file.
func readRaw[T any](path string) ([]T, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	_, body, _ := bytes.Cut(b, []byte("\n\n"))
	all, err := decodeLines[T](body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

func decodeLines[T any](b []byte) ([]T, error) {
	var all []T
	for d := json.NewDecoder(bytes.NewReader(b)); d.More(); {
		var v T
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}
