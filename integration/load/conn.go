package load

import (
	"context"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// operation is the key of an operation's name in a call's context.
type operation struct{}

// Dial returns the snapshotter that a daemon serves, for this load. Its calls
// are known by Doing as long as they run.
func (l *Load) Dial(socket string) (snapshots.Snapshotter, *grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(l.watch),
		// A daemon that was killed is back soon.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.2, MaxDelay: 50 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}))
	if err != nil {
		return nil, nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "daxfs"), conn, nil
}

func (l *Load) watch(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	op, _ := ctx.Value(operation{}).(string)
	l.count(op, 1)
	defer l.count(op, -1)
	select {
	case l.began <- op:
	default:
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

func (l *Load) count(op string, by int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls[op] += by
}

// Began tells of each call's operation when it begins, to who reads from it at
// that moment.
func (l *Load) Began() <-chan string { return l.began }

// Doing are the operations of which a call runs.
func (l *Load) Doing() (ops []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, op := range Operations {
		if l.calls[op] > 0 {
			ops = append(ops, op)
		}
	}
	return ops
}
