package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// server holds the containers of one guest.
type server struct {
	scratch    string // a tmpfs
	pool       protocol.Pool
	containers []*container
	processes  []int // of each container
}

func (s *server) image() string    { return filepath.Join(s.scratch, "image") }
func (s *server) manifest() string { return filepath.Join(s.scratch, "manifest") }

// serve answers requests on a unix socket until it is killed. Its containers
// die with it.
func serve(socket string) error {
	s := &server{scratch: filepath.Dir(socket)}
	if err := unix.Mount("tmpfs", s.scratch, "tmpfs", 0, "huge=never"); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", s.scratch, err)
	}
	// A Go program would take huge pages for a small heap. Those of DAX are not
	// affected.
	if err := os.WriteFile("/sys/kernel/mm/transparent_hugepage/enabled", []byte("never"), 0); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := s.answer(c); err != nil {
			fmt.Fprintln(os.Stderr, "inside:", err)
		}
	}
}

func (s *server) answer(c net.Conn) error {
	defer c.Close()
	var (
		q protocol.Request
		r protocol.Response
	)
	err := json.NewDecoder(c).Decode(&q)
	if err == nil {
		err = s.do(&q, &r)
	}
	if err != nil {
		r.Err = err.Error()
	}
	return json.NewEncoder(c).Encode(&r)
}

func (s *server) do(q *protocol.Request, r *protocol.Response) (err error) {
	if q.Prepare != nil {
		if err := s.prepare(q.Prepare); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	if q.Mount != "" {
		if err := mountImage(s.pool, q.Mount, s.image()); err != nil {
			return err
		}
	}
	if q.Stop {
		if err := s.stop(); err != nil {
			return err
		}
	}
	if q.Grow != nil {
		if err := s.grow(q.Grow); err != nil {
			return err
		}
	}
	if len(q.Run) > 0 {
		for _, c := range s.containers {
			one, err := c.do(order{Run: q.Run})
			if err != nil {
				return err
			}
			r.Output = append(r.Output, one.Output)
		}
	}
	if q.Frames {
		if r.Frames, err = askAll[protocol.Frames](s.containers, fmt.Sprint("frames ", s.pool.Phys)); err != nil {
			return err
		}
	}
	if q.Look != nil {
		line := fmt.Sprint("look ", q.Look.Path, " ", q.Look.Offset)
		if r.Look, err = askAll[protocol.Look](s.containers, line); err != nil {
			return err
		}
	}
	if q.Memory {
		r.Memory, err = measureMemory(s.containers)
	}
	return err
}

func (s *server) prepare(q *protocol.Prepare) error {
	s.pool = q.Pool
	b, err := os.ReadFile(q.Manifest)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.manifest(), b, 0o644); err != nil {
		return err
	}
	if err := s.warmUp(); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	if s.pool.Size > 0 {
		if err := loadPmem(); err != nil {
			return err
		}
	}
	return dropCaches("3")
}

// warmUp runs a container on a tree of one file, so that what the first
// container of a kernel costs besides its image (this program's own pages, the
// overlay module) is there before anything is measured.
func (s *server) warmUp() error {
	lower := filepath.Join(s.scratch, "warm-up")
	if err := os.MkdirAll(filepath.Join(lower, "proc"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(lower, "file"), make([]byte, keepFrom), 0o644); err != nil {
		return err
	}
	manifest := filepath.Join(s.scratch, "warm-up-manifest")
	if err := os.WriteFile(manifest, fmt.Appendf(nil, "%d 0 /file\x00", keepFrom), 0o644); err != nil {
		return err
	}
	c, err := startContainer(0, lower, s.scratch, manifest)
	if err != nil {
		return err
	}
	_, err = c.do(order{Workers: 1})
	return errors.Join(err, c.stop())
}

// dropCaches lets go of clean caches: "2" of dentries and inodes, "3" of pages too.
func dropCaches(which string) error {
	const control = "/proc/sys/vm/drop_caches"
	// "4" keeps the kernel from logging each time, on a slow serial line.
	if err := os.WriteFile(control, []byte("4"), 0); err != nil {
		return err
	}
	unix.Sync()
	return os.WriteFile(control, []byte(which), 0)
}

func (s *server) stop() error {
	for _, c := range s.containers {
		if err := c.stop(); err != nil {
			return err
		}
	}
	s.containers, s.processes = nil, nil
	return nil
}

func (s *server) grow(q *protocol.Grow) error {
	for len(s.containers) < q.Containers {
		c, err := startContainer(len(s.containers), s.image(), s.scratch, s.manifest())
		if err != nil {
			return err
		}
		s.containers = append(s.containers, c)
		s.processes = append(s.processes, 0)
	}
	var g errgroup.Group
	g.SetLimit(2)
	for i, c := range s.containers {
		g.Go(func() error {
			more := q.Processes - s.processes[i]
			if more <= 0 {
				return nil
			}
			s.processes[i] = q.Processes
			_, err := c.do(order{Workers: more})
			return err
		})
	}
	return g.Wait()
}

// ask sends a request to the server, which may be about to start, and prints
// the response.
func ask(socket, line string) error {
	var c net.Conn
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		var err error
		if c, err = net.Dial("unix", socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
	}
	defer c.Close()
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	var r protocol.Response
	if err := json.Unmarshal(b, &r); err != nil {
		return err
	}
	if r.Err != "" {
		return errors.New(r.Err)
	}
	_, err = os.Stdout.Write(b)
	return err
}
