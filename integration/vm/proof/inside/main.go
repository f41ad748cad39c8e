// Command inside is the part of the proof that runs in a guest.
//
//	inside serve SOCKET             hold containers and measure, as asked
//	inside ask SOCKET REQUEST       ask the server; JSON both ways
//	inside speed FLAGS              measure file systems against each other
//	inside transfer FLAGS           measure regions against plain memory
//
// The server starts this program again as process 1 of a container, and that
// one as the processes in it:
//
//	inside container LOWER DIR      (manifest on descriptor 3)
//	inside worker MANIFEST [thorough]
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 3 && args[0] == "ask":
		return ask(args[1], args[2])
	case len(args) > 0 && args[0] == "speed":
		return speed(args[1:])
	case len(args) > 0 && args[0] == "transfer":
		return transfer(args[1:])
	case len(args) == 3 && args[0] == "container":
		return containerMain(args[1], args[2])
	case len(args) == 2 && args[0] == "worker":
		return worker(args[1], false)
	case len(args) == 3 && args[0] == "worker" && args[2] == "thorough":
		return worker(args[1], true)
	}
	return fmt.Errorf("bad arguments %q", args)
}
