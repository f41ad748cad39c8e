package inside

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Env is the environment variable that makes the test binary run Main. Its
// value is the file of the Task.
const Env = "DAXFS_HOSTILE_TASK"

// What Main does, as its first argument. All print a Report as JSON on the last
// line of standard output, Trees a map of digests.
const (
	// Images mounts and visits each of the task's images.
	Images = "images"
	// Live mounts them and has four readers and a mounter at work on them while
	// somebody else changes the bytes. It prints Ready before it begins.
	Live = "live"
	// Trees mounts them and prints a digest of what each holds, by offset.
	Trees = "trees"

	// The processes of Images and Live.
	imagesWorker = "images-worker" // INDEX COUNT
	liveReader   = "live-reader"   // INDEX
	liveMounter  = "live-mounter"
)

// Ready is the first line of Live.
const Ready = "ready"

// Main runs in the guest. It returns the exit status.
func Main() int {
	// Processes have their own file system ids and mount namespace.
	runtime.LockOSThread()
	out, err := run(os.Args[1], os.Args[2:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(out)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%q: %v\n", os.Args[1:], err)
		return 1
	}
	return 0
}

func run(mode string, args []string) (any, error) {
	task, err := readTask(os.Getenv(Env))
	if err != nil {
		return nil, err
	}
	r, err := findRegion()
	if err != nil {
		return nil, fmt.Errorf("find the pool: %w", err)
	}
	r.nopages = task.Via == ViaNopages
	var n []int
	for _, a := range args {
		i, err := strconv.Atoi(a)
		if err != nil {
			return nil, err
		}
		n = append(n, i)
	}
	// No program of an image leaves a core.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return nil, err
	}
	switch mode {
	case Images:
		return images(task, r)
	case Live:
		return live(task, r)
	case Trees:
		return trees(task, r)
	case imagesWorker:
		return imagesWork(task, r, n[0], n[1])
	case liveReader:
		return liveRead(task, n[0])
	case liveMounter:
		return liveMount(task, r)
	}
	return nil, fmt.Errorf("no mode %q", mode)
}
