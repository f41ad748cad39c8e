// Command mkimages makes test images in a cache directory; those that are
// there already cost nothing. It prints each one's layout directory.
//
//	mkimages -dir DIR -testprog FILE [NAME...]
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/daxfs/containerd-daxfs/integration/images"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("mkimages: ")
	var c images.Cache
	flag.StringVar(&c.Dir, "dir", ".cache/images", "cache `directory`")
	flag.StringVar(&c.TestProg, "testprog", "", "static `binary` of integration/testprog")
	flag.Parse()
	names := flag.Args()
	if len(names) == 0 {
		names = images.Names()
	}
	c.Log = log.Printf
	// Interrupting must still unmount what a recipe has mounted.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for _, name := range names {
		l, err := c.Get(ctx, name)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(l.Dir)
	}
}
