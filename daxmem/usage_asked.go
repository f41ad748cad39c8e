package daxmem

import "fmt"

// Asked is what a kernel has asked of the owner, as anybody can see it: how often
// in its time at the seat, and the last request.
type Asked struct {
	Request        // Seat is nil
	Number  int    // of the seat
	Times   uint32 // requests so far
	Outcome string // "waiting", "at work", "done" or "failed"
	Text    string // of a failure
}

// readAsked returns what the holder of a seat has asked; nil: nothing, or
// nothing that makes sense.
func readAsked(w Window, g *geometry, seat int) (*Asked, error) {
	at := g.seat(seat) + seatRequest
	number, err := w.Load(at)
	if err != nil || number == 0 {
		return nil, windowError(fmt.Sprintf("read request of seat %d", seat), err)
	}
	b := make([]byte, requestSize-requestBody)
	if _, err := w.ReadAt(b, at+requestBody); err != nil {
		return nil, windowError(fmt.Sprintf("read request of seat %d", seat), err)
	}
	q, err := decodeRequest(b)
	if err != nil {
		return nil, nil
	}
	outcome, text, err := readReply(w, g, seat, number)
	if err != nil {
		return nil, err
	}
	names := map[uint32]string{outcomeWorking: "at work", outcomeDone: "done", outcomeFailed: "failed"}
	a := &Asked{Request: *q, Number: seat, Times: uint32(number), Outcome: names[outcome], Text: text}
	if a.Outcome == "" {
		a.Outcome = "waiting"
	}
	if outcome != outcomeFailed {
		a.Text = "" // of an earlier request
	}
	return a, nil
}
