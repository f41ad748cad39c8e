// Package report is what the benchmark programs share: raw files in docs/bench,
// and the parts of a document that are written from them.
package report

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Raw is a file of docs/bench: a head that says how it was made, then one JSON
// object a line.
type Raw struct {
	path string
	buf  bytes.Buffer
}

// NewRaw returns a raw file to be saved at path, made by a command; note is
// added to what its head says of the machine.
func NewRaw(ctx context.Context, path, command, note string) (*Raw, error) {
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
	r := &Raw{path: path}
	fmt.Fprintf(&r.buf, "command: %s\ncommit: %s\nmachine: %d CPUs (%s), Linux %s, %s; %s\ndate: %s\n\n",
		command, strings.TrimSpace(string(commit)), runtime.NumCPU(), cpu,
		strings.TrimSpace(string(release)), runtime.Version(), note, time.Now().UTC().Format(time.DateOnly))
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

// Add appends one object.
func (r *Raw) Add(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	r.buf.Write(append(b, '\n'))
	return nil
}

// Save replaces the file, now that all is measured.
func (r *Raw) Save() error {
	if err := os.MkdirAll(filepath.Dir(r.path), 0o755); err != nil {
		return err
	}
	tmp := r.path + ".tmp"
	if err := os.WriteFile(tmp, r.buf.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, r.path)
}

// Read returns the objects of a raw file: none if there is no such file, because
// that part was never measured.
func Read[T any](path string) ([]T, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	_, body, _ := bytes.Cut(b, []byte("\n\n"))
	all, err := DecodeLines[T](body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// Head returns what a raw file's head says of key, "" if nothing.
func Head(path, key string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	head, _, _ := strings.Cut(string(b), "\n\n")
	for line := range strings.Lines(head) {
		if value, ok := strings.CutPrefix(line, key+": "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// DecodeLines returns JSON objects that follow each other.
func DecodeLines[T any](b []byte) ([]T, error) {
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
