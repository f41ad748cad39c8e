// Command standin serves containerd's overlayfs snapshotter with the flags of
// containerd-daxfs-grpc. The harness is tested with it: what fails with the
// stand-in is a fault of the harness, not of the snapshotter under test
// (DAXFS_TEST_DAEMON=standin). Behind a proxy it loses whiteouts when unpacking
// in parallel, which the comparison must find.
package main

import (
	"flag"
	"log"
	"net"
	"os"
	"path/filepath"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"google.golang.org/grpc"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("standin: ")
	root := flag.String("root", "", "`directory` of the snapshots")
	address := flag.String("address", "", "unix `socket`")
	flag.String("config", "", "ignored")
	flag.String("log-level", "", "ignored")
	flag.Parse()
	if err := serve(*root, *address); err != nil {
		log.Fatal(err)
	}
}

func serve(root, address string) error {
	sn, err := overlay.NewSnapshotter(filepath.Join(root, "overlay"), overlay.WithRemapIDs)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(s, snapshotservice.FromSnapshotter(sn))
	if err := os.Remove(address); err != nil && !os.IsNotExist(err) {
		return err
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	return s.Serve(l)
}
