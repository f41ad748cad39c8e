// Command testprog is the only program in images that have no shell: a static
// binary that does a few things by its first argument, or by the name it was
// called with (so /bin/true can be a hard link to it).
//
//	true                nothing
//	sleep SECONDS       sleep, and exit at once on SIGTERM
//	pause               sleep until SIGTERM or SIGINT
//	cat FILE...         the files' bytes on standard output
//	sum FILE...         SHA-256 and name of each file
//	write FILE TEXT     replace FILE
//	walk DIR            "type mode uid gid name" of everything below DIR
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	verb, args := filepath.Base(os.Args[0]), os.Args[1:]
	if verb == "testprog" {
		if len(args) == 0 {
			fail(fmt.Errorf("no verb"))
		}
		verb, args = args[0], args[1:]
	}
	if err := run(verb, args); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "testprog:", err)
	os.Exit(1)
}

func run(verb string, args []string) error {
	switch {
	case verb == "true":
		return nil
	case verb == "sleep" && len(args) == 1:
		return sleep(args[0])
	case verb == "pause":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		<-stop
		return nil
	case verb == "cat":
		return each(args, func(name string, f *os.File) error {
			_, err := io.Copy(os.Stdout, f)
			return err
		})
	case verb == "sum":
		return each(args, func(name string, f *os.File) error {
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			fmt.Printf("%x  %s\n", h.Sum(nil), name)
			return nil
		})
	case verb == "write" && len(args) == 2:
		return os.WriteFile(args[0], []byte(args[1]), 0o644)
	case verb == "walk" && len(args) == 1:
		return walk(args[0])
	}
	return fmt.Errorf("bad arguments: %q", os.Args)
}

func sleep(seconds string) error {
	n, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	// As process 1 of a container there is no default action for SIGTERM.
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	select {
	case <-term:
	case <-time.After(time.Duration(n * float64(time.Second))):
	}
	return nil
}

func each(names []string, do func(string, *os.File) error) error {
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = do(name, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func walk(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		_, err = fmt.Printf("%v %d %d %q\n", info.Mode(), st.Uid, st.Gid, path)
		return err
	})
}
