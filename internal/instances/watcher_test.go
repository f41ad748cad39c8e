package instances

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// script is an orchestrator that says what a test wants.
type script struct {
	list List
	err  error
}

func (s *script) List(context.Context) (List, error) { return s.list, s.err }
func (s *script) String() string                     { return "script" }

var (
	here  = [16]byte{1}
	there = [16]byte{2}
)

func mine() *daxmem.Seat {
	return &daxmem.Seat{Number: 0, Held: true, Generation: 1, Mine: true, Owner: true, Identity: daxmem.Identity{Boot: here, Instance: "host"}}
}

// other is the seat of another kernel.
func other(number int, generation uint64, name string) *daxmem.Seat {
	return &daxmem.Seat{Number: number, Held: true, Generation: generation, Identity: daxmem.Identity{Boot: there, Instance: name}}
}

// watch is a watcher with what it looks at.
type watch struct {
	*Watcher
	t     *testing.T
	says  *script
	seats []*daxmem.Seat
}

func newWatch(t *testing.T, seats ...*daxmem.Seat) *watch {
	w := &watch{t: t, says: &script{}, seats: seats}
	w.Watcher = NewWatcher(w.says)
	return w
}

// look makes a look and wants these seats to be found, by number.
func (w *watch) look(list List, want ...int) {
	w.t.Helper()
	w.says.list, w.says.err = list, nil
	gone, err := w.Look(w.t.Context(), func() ([]*daxmem.Seat, error) { return w.seats, nil })
	if err != nil {
		w.t.Fatal(err)
	}
	var got []int
	for _, g := range gone {
		got = append(got, g.Number)
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("%v: gone are %v, want %v", list, got, want)
	}
}

func of(name string, s State) List { return List{name: {State: s}} }

// What was seen alive, and is not twice in a row, is gone: stopped or removed.
func TestWatcherGone(t *testing.T) {
	for _, end := range []List{of("vm", Stopped), {}, of("else", Running)} {
		w := newWatch(t, mine(), other(3, 7, "vm"))
		w.look(of("vm", Running))
		w.look(end)
		w.look(end, 3)
		w.look(end, 3) // until somebody evicts it
		w.seats = w.seats[:1]
		w.look(end)
	}
}

// Nobody is gone who was not seen alive, or who may run.
func TestWatcherUnclear(t *testing.T) {
	w := newWatch(t, mine(), other(3, 7, "vm"))
	for _, l := range []List{of("vm", Stopped), {}, of("vm", Unclear), {}, of("vm", Stopped)} {
		w.look(l) // never seen alive
	}
	w.look(of("vm", Running))
	for _, l := range []List{
		of("vm", Unclear), of("vm", Unclear), of("vm", Unclear),
		of("vm", Stopped), of("vm", Unclear), of("vm", Stopped), // never twice in a row
		of("vm", Running), {}, of("vm", Running), {},
	} {
		w.look(l)
	}
	w.look(List{}, 3)
}

// An answer that cannot be had is none, and the looks in a row begin again.
func TestWatcherErrors(t *testing.T) {
	w := newWatch(t, mine(), other(3, 7, "vm"))
	w.look(of("vm", Running))
	broken := errors.New("broken")
	for range 3 {
		w.look(List{})
		w.says.err = broken
		if gone, err := w.Look(t.Context(), func() ([]*daxmem.Seat, error) { return w.seats, nil }); !errors.Is(err, broken) || gone != nil {
			t.Errorf("%v, %v", gone, err)
		}
		w.look(List{})
		if gone, err := w.Look(t.Context(), func() ([]*daxmem.Seat, error) { return nil, broken }); !errors.Is(err, broken) || gone != nil {
			t.Errorf("%v, %v", gone, err)
		}
	}
	w.look(List{})
	w.look(List{}, 3) // it is still known to have run
}

// A seat that another holder has by now was not seen alive with that holder.
func TestWatcherSeatReused(t *testing.T) {
	w := newWatch(t, mine(), other(3, 7, "vm"))
	w.look(of("vm", Running))
	w.look(List{})
	w.seats[1] = other(3, 8, "vm")
	for range 4 {
		w.look(List{})
	}
	// The same name runs again: with the new generation it can be judged.
	w.look(of("vm", Running))
	w.look(of("vm", Stopped))
	w.look(of("vm", Stopped), 3)
}

// What cannot be judged is never gone, whatever was seen of its name.
func TestWatcherNotJudged(t *testing.T) {
	for name, change := range map[string]func(s []*daxmem.Seat){
		"no name":       func(s []*daxmem.Seat) { s[1].Instance = "" },
		"damaged":       func(s []*daxmem.Seat) { s[1].Damaged = "checksum" },
		"being claimed": func(s []*daxmem.Seat) { s[1].Held = false },
		"this kernel":   func(s []*daxmem.Seat) { s[1].Boot = here },
		"no own seat":   func(s []*daxmem.Seat) { s[0].Mine = false },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWatch(t, mine(), other(3, 7, "vm"))
			change(w.seats)
			for _, l := range []List{
				{"vm": {State: Running}, "": {State: Running}, "host": {State: Running}}, {}, {}, {},
			} {
				w.look(l)
			}
		})
	}
}

// The orchestrator is asked after the seats were read: a seat that is claimed
// between the two is not judged by what was true before.
func TestWatcherOrder(t *testing.T) {
	w := newWatch(t, mine(), other(3, 7, "vm"))
	w.look(of("vm", Running))
	for range 3 {
		w.says.list = List{}
		gone, err := w.Look(t.Context(), func() ([]*daxmem.Seat, error) {
			w.says.list = of("vm", Running)
			return w.seats, nil
		})
		if err != nil || len(gone) != 0 {
			t.Errorf("asked too early: %v, %v", gone, err)
		}
	}
}
