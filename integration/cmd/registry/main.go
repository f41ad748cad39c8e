// Command registry serves OCI image layouts on a loopback port, for the demo
// and for trying things by hand. It prints its address, then the digest of each
// blob that is fetched, and runs until killed.
//
//	registry [-listen ADDRESS] NAME=LAYOUT-DIRECTORY...
package main

import (
	"flag"
	"fmt"
	"log"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/integration/registry"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("registry: ")
	listen := flag.String("listen", "127.0.0.1:0", "`address` to serve at")
	flag.Parse()
	r := registry.New()
	for _, arg := range flag.Args() {
		name, dir, ok := strings.Cut(arg, "=")
		if !ok {
			log.Fatalf("%q is not NAME=LAYOUT-DIRECTORY", arg)
		}
		r.Add(name, dir)
	}
	addr, _, err := r.ServeAt(*listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(addr)
	r.OnBlob(func(d digest.Digest) { fmt.Println(d) })
	select {}
}
