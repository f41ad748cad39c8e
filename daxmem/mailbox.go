package daxmem

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// RequestKind is what a reader asks of the pool's owner.
type RequestKind uint32

const (
	// AskFlatten: publish the image of a chain that the catalog has.
	AskFlatten RequestKind = 1
	// AskConvert: bring an image's layers into the pool, and its chain.
	AskConvert RequestKind = 2
)

func (k RequestKind) String() string {
	switch k {
	case AskFlatten:
		return "flatten"
	case AskConvert:
		return "convert"
	}
	return fmt.Sprintf("request %d", uint32(k))
}

// Request is one request of a reader (docs/memory-model.md, "Mailbox").
type Request struct {
	Kind  RequestKind
	Chain [32]byte // chainID
	Name  string   // of the image, at most MaxRequestName bytes

	Seat *Seat // who asks; set for the owner
}

// MaxRequestName is the most bytes of an image's name in a request.
const MaxRequestName = 448

// Places in a request and in a reply.
const (
	requestBody  = 8
	requestSize  = 512
	replyOutcome = 8
	replyText    = 16
	maxReplyText = 1024

	outcomeWorking = 1
	outcomeDone    = 2
	outcomeFailed  = 3

	// requestOpen in a number: the request is being written.
	requestOpen = 1 << 63
)

// ErrNoOwner: nobody answers requests.
var ErrNoOwner = fmt.Errorf("daxmem: the pool's owner does not answer: %w", errdefs.ErrUnavailable)

// ErrRefused: the owner has answered that it cannot do what it was asked.
var ErrRefused = fmt.Errorf("daxmem: refused by the pool's owner: %w", errdefs.ErrFailedPrecondition)

func (q *Request) encode() ([]byte, error) {
	if len(q.Name) > MaxRequestName {
		return nil, invalidf("ask: name of %d bytes, at most %d", len(q.Name), MaxRequestName)
	}
	b := make([]byte, requestSize-requestBody)
	le.PutUint32(b[0:], uint32(q.Kind))
	le.PutUint32(b[4:], uint32(len(q.Name)))
	copy(b[8:], q.Chain[:])
	copy(b[40:], q.Name)
	return b, nil
}

// decodeRequest reads what another kernel has written, whatever it is.
func decodeRequest(b []byte) (*Request, error) {
	n := le.Uint32(b[4:])
	if n > MaxRequestName {
		return nil, invalidf("name of %d bytes, at most %d", n, MaxRequestName)
	}
	q := &Request{Kind: RequestKind(le.Uint32(b)), Chain: [32]byte(b[8:40]), Name: strings.ToValidUTF8(string(b[40:40+n]), "?")}
	if q.Kind != AskFlatten && q.Kind != AskConvert {
		return nil, invalidf("%v is not known", q.Kind)
	}
	return q, nil
}

// patience is how old the owner's heartbeat may be before a request gives up.
const patience = 5 * heartbeat

// Ask sends a request to the owner and waits for its end, for ctx, or for the
// owner to fall silent: ErrNoOwner. One request is under way at a time.
func (r *Reader) Ask(ctx context.Context, q *Request) error {
	body, err := q.encode()
	if err != nil {
		return err
	}
	r.asking.Lock()
	defer r.asking.Unlock()
	if err := r.ask(ctx, body); err != nil {
		return fmt.Errorf("ask the owner to %v chain %x: %w", q.Kind, q.Chain[:8], err)
	}
	return nil
}

func (r *Reader) ask(ctx context.Context, body []byte) error {
	s, g := r.seat, &r.sup.geometry
	if err := s.check(); err != nil {
		return err
	}
	at := g.seat(s.number) + seatRequest
	number, err := s.w.Load(at)
	// Numbers of former holders of the seat, which may have been answered, are
	// others.
	if number &^= requestOpen; number>>32 != s.word.generation()&(1<<31-1) {
		number = s.word.generation() & (1<<31 - 1) << 32
	}
	if err == nil {
		err = s.w.Store(at, number|requestOpen)
	}
	if err == nil {
		step(stepRequestOpened)
		_, err = s.w.WriteAt(body, at+requestBody)
	}
	if err == nil {
		step(stepRequestWritten)
		number++
		err = s.w.Store(at, number)
	}
	if err != nil {
		return windowError("write request", err)
	}
	step(stepRequestSent)
	alive := newPulse(r)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		outcome, text, err := readReply(r.w, g, s.number, number)
		switch {
		case err != nil:
			return err
		case outcome == outcomeDone:
			return nil
		case outcome == outcomeFailed:
			return fmt.Errorf("%s: %w", text, ErrRefused)
		}
		if err := alive.check(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// readReply returns the outcome of a request, 0 while there is none.
func readReply(w Window, g *geometry, seat int, number uint64) (outcome uint32, text string, err error) {
	at := g.reply(seat)
	answered, err := w.Load(at)
	if err != nil || answered != number {
		return 0, "", windowError("read reply", err)
	}
	v, err := w.Load(at + replyOutcome)
	if err != nil {
		return 0, "", windowError("read reply", err)
	}
	b := make([]byte, min(v>>32, maxReplyText))
	if _, err := w.ReadAt(b, at+replyText); err != nil {
		return 0, "", windowError("read reply", err)
	}
	return uint32(v), strings.ToValidUTF8(string(b), "?"), nil
}

// pulse watches the owner. Clocks of kernels differ: what counts is that the
// heartbeat changes.
type pulse struct {
	r     *Reader
	seat  int
	last  uint64
	since time.Time
}

func newPulse(r *Reader) *pulse { return &pulse{r: r, seat: -1} }

func (p *pulse) check() error {
	ow, err := loadOwnerWord(p.r.w)
	if err != nil {
		return err
	}
	if ow.state() == ownedByNobody {
		return fmt.Errorf("nobody owns the pool: %w", ErrNoOwner)
	}
	beat, err := p.r.w.Load(p.r.sup.seat(ow.seat()) + seatHeartbeat)
	if err != nil {
		return windowError("read heartbeat", err)
	}
	if ow.seat() != p.seat || beat != p.last {
		p.seat, p.last, p.since = ow.seat(), beat, time.Now()
	}
	if silent := time.Since(p.since); silent > patience {
		return fmt.Errorf("seat %d is silent since %v: %w", p.seat, silent.Round(time.Second), ErrNoOwner)
	}
	return nil
}

// mailboxPause is how often the owner looks for requests in the seats that were
// held at its last look at all of them, which it takes every seatsPause.
const (
	mailboxPause = 10 * time.Millisecond
	seatsPause   = 100 * time.Millisecond
)

// Serve answers the requests of other kernels until ctx ends, each in a
// goroutine of its own. What handle returns is the reply. A request that an
// earlier owner was at is begun again.
func (p *Pool) Serve(ctx context.Context, handle func(context.Context, *Request) error) error {
	if err := p.beginWrite(); err != nil {
		return err
	}
	defer p.end()
	var busy [seatCount]uint64 // number of the request at work
	var mu sync.Mutex
	var running sync.WaitGroup
	defer running.Wait()
	var held []int
	for looked := (time.Time{}); ; {
		if err := p.mayWrite(); err != nil {
			return err
		}
		if time.Since(looked) >= seatsPause {
			var err error
			if held, err = p.heldSeats(); err != nil {
				return err
			}
			looked = time.Now()
		}
		for _, n := range held {
			number, q, err := p.nextRequest(n)
			if err != nil {
				return err
			}
			mu.Lock()
			idle := number != 0 && busy[n] == 0
			if idle {
				busy[n] = number
			}
			mu.Unlock()
			if !idle {
				continue
			}
			running.Go(func() {
				p.answer(ctx, n, number, q, handle)
				mu.Lock()
				defer mu.Unlock()
				busy[n] = 0
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.stop:
			return nil
		case <-time.After(mailboxPause):
		}
	}
}

// heldSeats lists the seats that kernels have.
func (p *Pool) heldSeats() (held []int, _ error) {
	for n := range seatCount {
		s, _, ok, err := readSeat(p.w, &p.sup.geometry, n)
		if err != nil {
			return nil, err
		}
		if ok && s.Held {
			held = append(held, n)
		}
	}
	return held, nil
}

// nextRequest returns the number of a seat's unanswered request, or 0; nil
// stands for one that makes no sense.
func (p *Pool) nextRequest(n int) (number uint64, q *Request, err error) {
	g := &p.sup.geometry
	s, _, ok, err := readSeat(p.w, g, n)
	if err != nil || !ok || !s.Held {
		return 0, nil, err
	}
	at := g.seat(n) + seatRequest
	if number, err = p.w.Load(at); err != nil || number == 0 || number&requestOpen != 0 {
		return 0, nil, windowError("read request", err)
	}
	outcome, _, err := readReply(p.w, g, n, number)
	if err != nil || outcome == outcomeDone || outcome == outcomeFailed {
		return 0, nil, err
	}
	b := make([]byte, requestSize-requestBody)
	if _, err := p.w.ReadAt(b, at+requestBody); err != nil {
		return 0, nil, windowError("read request", err)
	}
	if now, err := p.w.Load(at); err != nil || now != number {
		return 0, nil, windowError("read request", err)
	}
	if q, err = decodeRequest(b); err != nil {
		log.L.WithError(err).WithField("seat", s.String()).Warn("request makes no sense")
		return number, nil, nil
	}
	q.Seat = s
	return number, q, nil
}

// answer does one request.
func (p *Pool) answer(ctx context.Context, n int, number uint64, q *Request, handle func(context.Context, *Request) error) {
	at := p.sup.reply(n)
	err := p.w.Store(at+replyOutcome, outcomeWorking)
	if err == nil {
		err = p.w.Store(at, number)
	}
	if err != nil {
		log.L.WithError(err).WithField("seat", n).Error("write reply")
		return
	}
	step(stepRequestTaken)
	outcome, text := uint64(outcomeDone), ""
	if q == nil {
		outcome, text = outcomeFailed, "the request makes no sense"
	} else if err := handle(ctx, q); err != nil {
		if ctx.Err() != nil {
			return // a later owner does it
		}
		outcome, text = outcomeFailed, err.Error()
	}
	if err := p.mayWrite(); err != nil {
		return // a later owner does it again
	}
	text = text[:min(len(text), maxReplyText)]
	_, err = p.w.WriteAt([]byte(text), at+replyText)
	if err == nil {
		step(stepBeforeReply)
		err = p.w.Store(at+replyOutcome, outcome|uint64(len(text))<<32)
	}
	if err != nil {
		log.L.WithError(err).WithField("seat", n).Error("write reply")
		return
	}
	step(stepReplyWritten)
}
