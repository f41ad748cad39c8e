// Command stargz serves the stargz project's snapshotter, which pulls images of
// its own format lazily and unpacks ordinary ones as overlayfs does, on a unix
// socket. It is a peer in the pull benchmark, and a Go module of its own since
// nothing else needs what it needs.
//
//	stargz ROOT SOCKET
package main

import (
	"context"
	"log"
	"net"
	"os"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("stargz: ")
	if len(os.Args) != 3 {
		log.Fatal("want two arguments: ROOT SOCKET")
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func serve(root, socket string) error {
	if err := service.Supported(root); err != nil {
		return err
	}
	sn, err := service.NewStargzSnapshotterService(context.Background(), root, &service.Config{})
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(s, snapshotservice.FromSnapshotter(sn))
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return s.Serve(l)
}
