package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sys/unix"
)

// progress shows how much of the source was read, on a terminal only. A nil
// bar in it shows nothing.
type progress struct {
	bar *progressbar.ProgressBar
	w   io.Writer
}

func newProgress(w io.Writer, cfg *config) *progress {
	f, ok := w.(*os.File)
	if !ok || cfg.quiet || !isTerminal(f) {
		return &progress{}
	}
	p := &progress{w: w}
	p.total(-1)
	return p
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// total says how many bytes there are to read; -1 is unknown.
func (p *progress) total(n int64) {
	if p.w == nil {
		return
	}
	p.bar = progressbar.NewOptions64(n,
		progressbar.OptionSetWriter(p.w),
		progressbar.OptionShowBytes(true),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionThrottle(100*time.Millisecond),
		// Else a goroutine draws on after Clear.
		progressbar.OptionSetSpinnerChangeInterval(0),
		progressbar.OptionSetDescription("mkdaxfs"),
	)
}

func (p *progress) add(n int) {
	if p.bar != nil {
		_ = p.bar.Add(n) // a bar that cannot be drawn stops nothing
	}
}

func (p *progress) set(n int64) {
	if p.bar != nil {
		_ = p.bar.Set64(n)
	}
}

func (p *progress) finish() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}
