// Command registry serves OCI image layouts on a loopback port, for the demo
// and for trying things by hand. It prints its address and runs until killed.
//
//	registry NAME=LAYOUT-DIRECTORY...
package main

import (
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/registry"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("registry: ")
	r := registry.New()
	for _, arg := range os.Args[1:] {
		name, dir, ok := strings.Cut(arg, "=")
		if !ok {
			log.Fatalf("%q is not NAME=LAYOUT-DIRECTORY", arg)
		}
		r.Add(name, dir)
	}
	addr, _, err := r.Serve()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(addr)
	select {}
}
