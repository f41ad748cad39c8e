// Command load works at the snapshotter that a daemon serves on a socket, as
// package load does, and says "verified" each time when it has compared all
// files of all containers that it holds. SIGTERM makes it remove everything that
// it has made. It fails when something reads wrong. It is for guests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/daxfs/containerd-daxfs/integration/load"
)

func main() {
	socket := flag.String("socket", "", "the daemon's")
	dir := flag.String("dir", "", "where containers are mounted")
	program := flag.String("program", "", "the program that is in the images")
	seed := flag.Uint64("seed", 1, "of what is done in which order")
	workers := flag.Int("workers", 2, "how many work at once")
	flag.Parse()
	if err := run(*socket, *dir, *program, *seed, *workers); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(socket, dir, program string, seed uint64, workers int) error {
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	images, err := load.Images(b)
	if err != nil {
		return err
	}
	l, err := load.New(dir, images)
	if err != nil {
		return err
	}
	sn, conn, err := l.Dial(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := work(ctx, l, sn, seed, workers); err != nil {
		return err
	}
	// Until the daemon is there: it may be on its way to another role.
	for deadline := time.Now().Add(time.Minute); ; {
		if err = l.Release(context.Background(), sn); err == nil || time.Now().After(deadline) {
			break
		}
	}
	done, failed, read := l.Counts()
	fmt.Printf("done %v, not done %v, read %+v\n", done, failed, read)
	return err
}

// work works until ctx ends, or something is wrong.
func work(ctx context.Context, l *load.Load, sn snapshots.Snapshotter, seed uint64, workers int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wrong := make([]error, workers+1)
	var all sync.WaitGroup
	for i := range workers {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		all.Go(func() {
			defer cancel()
			wrong[i] = l.Work(ctx, rnd, func(context.Context) (snapshots.Snapshotter, error) { return sn, nil })
		})
	}
	all.Go(func() {
		defer cancel()
		wrong[workers] = verify(ctx, l)
	})
	all.Wait()
	return errors.Join(wrong...)
}

// verify compares what is held, again and again.
func verify(ctx context.Context, l *load.Load) error {
	for {
		n, err := l.Verify()
		if err != nil {
			return err
		}
		if n > 0 {
			fmt.Println("verified", n, "containers")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}
