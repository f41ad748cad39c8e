package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const liveReaders = 4

// live runs Live: the images are mounted once, by name, for all readers.
func live(task *Task, r region) (*Report, error) {
	release, err := anchor(task, r)
	if err != nil {
		return nil, err
	}
	before, err := takeState()
	if err != nil {
		return nil, err
	}
	rep := newReport()
	at, err := livePlaces(task)
	if err != nil {
		return nil, err
	}
	for i, offset := range task.Images {
		if err := mount(r, offset, at[i], fmt.Sprintf("live%d", i)); err != nil {
			return nil, fmt.Errorf("mount image at %d: %w", offset, err)
		}
	}
	fmt.Println(Ready)
	start := time.Now()
	procs := []*process{spawn(liveMounter)}
	for i := range liveReaders {
		procs = append(procs, spawn(liveReader, i))
	}
	// What is cached does not change: make it be read again.
	ended := make(chan struct{})
	forgotten := make(chan struct{})
	go func() {
		defer close(forgotten)
		for {
			select {
			case <-ended:
				return
			case <-time.After(50 * time.Millisecond):
				_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0)
			}
		}
	}()
	watch(rep, procs)
	close(ended)
	<-forgotten
	rep.Seconds = time.Since(start).Seconds()
	for i := range at {
		if err := unmount(at[i]); err != nil {
			rep.broken("unmount %s: %v", at[i], err)
		}
	}
	if err := before.compare(rep); err != nil {
		return nil, err
	}
	return rep, release()
}

func livePlaces(task *Task) ([]string, error) { return places(len(task.Images), "live") }

// liveRead visits the mounted images until time is up, and touches mappings
// that it has held from the beginning.
func liveRead(task *Task, index int) (*Report, error) {
	at, err := livePlaces(task)
	if err != nil {
		return nil, err
	}
	rep := newReport()
	v := newVisit(rep, fmt.Sprintf("reader %d", index), uint64(index))
	v.changing = true
	var held [][]byte
	for _, root := range at {
		held = append(held, v.hold(root)...)
	}
	end := time.Now().Add(time.Duration(task.Seconds) * time.Second)
	for round := index; time.Now().Before(end); round++ {
		begin(round)
		rep.Images++
		root := at[round%len(at)]
		v.tree(root)
		if round%4 == 0 {
			v.handles(root)
		}
		for _, b := range held {
			for i := 0; i < len(b); i += 4096 {
				v.call("touch held", v.touch(b, int64(i)))
			}
		}
	}
	for _, b := range held {
		unix.Munmap(b)
	}
	return rep, nil
}

// hold maps the files of root's first directories.
func (v *visit) hold(root string) (held [][]byte) {
	paths, _ := filepath.Glob(root + "/*")
	deeper, _ := filepath.Glob(root + "/*/*")
	for i, path := range append(paths, deeper...) {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0 {
			flags := unix.MAP_SHARED
			if i%2 == 0 {
				flags = unix.MAP_PRIVATE
			}
			b, err := unix.Mmap(fd, 0, int(min(st.Size, mapMax)), unix.PROT_READ, flags)
			if v.call("mmap held", err) {
				held = append(held, b)
			}
		}
		unix.Close(fd)
	}
	return held
}

// liveMount mounts and unmounts the images meanwhile, with and without check.
func liveMount(task *Task, r region) (*Report, error) {
	at := filepath.Join(dir, "again")
	for _, sub := range []string{"image", "overlay"} {
		if err := os.MkdirAll(filepath.Join(at, sub), 0o755); err != nil {
			return nil, err
		}
	}
	rep := newReport()
	end := time.Now().Add(time.Duration(task.Seconds) * time.Second)
	for n := 0; time.Now().Before(end); n++ {
		begin(n)
		offset := task.Images[n%len(task.Images)]
		v := newVisit(rep, fmt.Sprintf("again%d", n), uint64(n))
		v.changing, v.exec = true, true
		v.mounted(r, offset, at)
	}
	return rep, nil
}
