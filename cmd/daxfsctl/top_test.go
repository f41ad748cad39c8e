package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// attach makes another daemon at the site's pool, as of another kernel.
func (s *site) attach(holder string) *daxmem.Reader {
	s.t.Helper()
	region, err := daxmem.OpenRegionShared(s.poolPath())
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := daxmem.Attach(context.Background(), region, daxmem.Options{Instance: holder, Holder: holder})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return r
}

func (t *topJSON) find(kind string) *useJSON {
	i := slices.IndexFunc(t.Records, func(u *useJSON) bool { return u.Kind == kind })
	if i < 0 {
		return &useJSON{}
	}
	return t.Records[i]
}

// Kernels come and go, and pin and unpin; the owner stops; top sees it all.
func TestTop(t *testing.T) {
	s := newSite(t)
	s.run("test/9/container", appName())
	s.run("test/9/other", baseName())
	s.serve()
	var key [32]byte
	for _, r := range s.pool.Records() {
		if r.Kind == daxmem.KindImage {
			key = r.Key // the later one: base
		}
	}
	guest := s.attach("guest1")
	_, unpin, err := guest.Pin(daxmem.KindImage, key)
	if err != nil {
		t.Fatal(err)
	}
	var res topJSON
	s.json(0, &res, "top", "--once")
	st, err := s.pool.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if !res.Owned || len(res.Seats) != 2 || res.Used != st.Size-st.Free || res.Size != st.Size || len(res.Records) != 6 {
		t.Errorf("%+v", res)
	}
	owner, reader := res.Seats[0], res.Seats[1] // in the order of their coming
	if img := res.find("image"); img.Kernels != 2 || !slices.Equal(img.Seats, []int{owner.Seat, reader.Seat}) || img.Data != 12288+2*4096 {
		t.Errorf("image: %+v", img)
	}
	for _, u := range res.Seats {
		if u.Owner != (u == owner) || !u.Held || u.Heartbeat == nil || time.Since(*u.Heartbeat) > time.Minute || u.Pins < 1 {
			t.Errorf("seat %+v", u)
		}
	}
	out := s.good("top", "--once")
	wants(t, out, "2 kernels at work, 2 images of which 2 in use, 2 layers, 2 chains", "SEAT  KERNEL", "guest1", "owner", "reader", "0s ago", fmt.Sprintf("%d,%d", owner.Seat, reader.Seat))
	if strings.Contains(out, "\x1b") {
		t.Errorf("drawn for a terminal:\n%q", out)
	}
	unpin()
	// A request that waits, one that failed.
	asking, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
	if err := guest.Ask(asking, &daxmem.Request{Kind: daxmem.AskConvert, Chain: key, Name: "example.org/app:1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ask nobody: %v", err)
	}
	stop()
	wants(t, s.good("top", "--once"), "1 time  convert  waiting  example.org/app:1")
	serving, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- s.pool.Serve(serving, func(context.Context, *daxmem.Request) error { return errors.New("no such\nimage") })
	}()
	if err := guest.Ask(context.Background(), &daxmem.Request{Kind: daxmem.AskConvert, Chain: key, Name: "app:2"}); !errors.Is(err, daxmem.ErrRefused) {
		t.Errorf("ask in vain: %v", err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	wants(t, s.good("top", "--once"), "2 times  convert  failed: no such\\x0aimage  app:2")
	var later topJSON
	s.json(0, &later, "top", "--once")
	if len(later.Asked) != 1 || later.Asked[0].Seat != reader.Seat || later.Asked[0].Outcome != "failed" {
		t.Errorf("requests: %+v", later.Asked)
	}
	if later.Seats[1].Pins != 0 || later.find("image").Kernels != 1 {
		t.Errorf("after unpin: %+v", later)
	}
	s.close()
	var closed topJSON
	s.json(0, &closed, "top", "--once")
	if closed.Owned || len(closed.Records) != 6 {
		t.Errorf("without an owner: %+v", closed)
	}
	wants(t, s.good("top", "--once"), "nobody owns the pool")
}

// stopAfter ends a context when it has been written to n times.
type stopAfter struct {
	bytes.Buffer
	n    int
	stop context.CancelFunc
}

func (w *stopAfter) Write(b []byte) (int, error) {
	if bytes.HasPrefix(b, []byte("{")) || bytes.Contains(b, []byte("in use (")) {
		if w.n--; w.n == 0 {
			w.stop()
		}
	}
	return w.Buffer.Write(b)
}

// Without --once there is one look after the other; a signal ends it well.
func TestTopAgain(t *testing.T) {
	s := newSite(t)
	s.good("top", "--once") // writes the configuration
	args := []string{"daxfsctl", "--config", s.dir + "/config.toml", "top", "--interval", "100ms"}
	for _, flag := range []string{"", "--json"} {
		ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
		w := &stopAfter{n: 3, stop: stop}
		start := time.Now()
		if code := run(ctx, append(args, strings.Fields(flag)...), w, io.Discard); code != exitOK {
			t.Errorf("status %d", code)
		}
		if took := time.Since(start); took < 200*time.Millisecond || took > 20*time.Second {
			t.Errorf("3 looks at 100 ms took %v", took)
		}
		if flag == "" {
			if n := strings.Count(w.String(), "SEAT  KERNEL"); n != 3 {
				t.Errorf("%d looks, want 3", n)
			}
			continue
		}
		looks := 0
		for d := json.NewDecoder(&w.Buffer); ; looks++ {
			var res topJSON
			if err := d.Decode(&res); errors.Is(err, io.EOF) {
				break
			} else if err != nil || len(res.Seats) != 1 {
				t.Fatalf("%+v, %v", res, err)
			}
		}
		if looks != 3 {
			t.Errorf("%d documents, want 3", looks)
		}
	}
}

func TestTopRefuses(t *testing.T) {
	s := bareSite(t)
	for _, args := range [][]string{{"--interval", "0s"}, {"--interval", "-1s"}, {"--interval", "soon"}, {"--interval", "1ms"}, {"now"}} {
		if _, errOut, code := s.ctl(append([]string{"top", "--once"}, args...)...); code != exitUsage {
			t.Errorf("%v: status %d, want %d: %s", args, code, exitUsage, errOut)
		}
	}
	if err := os.WriteFile(s.poolPath(), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errOut, code := s.ctl("top", "--once")
	if code != exitBad {
		t.Errorf("something else: status %d", code)
	}
	wants(t, errOut, "not a pool")
	if err := os.Remove(s.poolPath()); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code = s.ctl("top"); code != exitBad {
		t.Errorf("no pool: status %d", code)
	}
	wants(t, errOut, "no such file or directory")
}

func TestTopFrame(t *testing.T) {
	text := []byte("one\nzwölf\nthree\nfour\n")
	for _, c := range []struct {
		width, height int
		want          string
	}{
		{80, 24, "\x1b[H\x1b[Kone\r\n\x1b[Kzwölf\r\n\x1b[Kthree\r\n\x1b[Jfour"},
		{3, 24, "\x1b[H\x1b[Kone\r\n\x1b[Kzwö\r\n\x1b[Kthr\r\n\x1b[Jfou"},
		{80, 3, "\x1b[H\x1b[Kone\r\n\x1b[Kzwölf\r\n\x1b[J... 2 more lines"},
		{80, 4, "\x1b[H\x1b[Kone\r\n\x1b[Kzwölf\r\n\x1b[Kthree\r\n\x1b[Jfour"},
	} {
		if got := string(frame(text, c.width, c.height)); got != c.want {
			t.Errorf("%d x %d: %q, want %q", c.width, c.height, got, c.want)
		}
	}
}
