package main

import (
	"errors"
	"fmt"
	"log"
	"slices"
	"testing"
)

// runner is the test that a lab is for, where there is none: a lab fails it by
// a panic that attempt catches. One goroutine uses it.
type runner struct {
	testing.TB
	cleanups []func()
	errs     []error
}

// failure is what a failed runner panics with.
type failure struct{ error }

func (r *runner) Helper()          {}
func (r *runner) Failed() bool     { return len(r.errs) > 0 }
func (r *runner) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *runner) Log(args ...any)                 { log.Print(args...) }
func (r *runner) Logf(format string, args ...any) { log.Printf(format, args...) }

func (r *runner) Error(args ...any) { r.errs = append(r.errs, errors.New(fmt.Sprint(args...))) }
func (r *runner) Errorf(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

func (r *runner) Fatal(args ...any)                 { panic(failure{errors.New(fmt.Sprint(args...))}) }
func (r *runner) Fatalf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

// Skipf is for what the machine lacks: nothing is skipped here.
func (r *runner) Skipf(format string, args ...any) { r.Fatalf(format, args...) }

// end runs the cleanups, last first, and returns all errors. p is what recover
// returned.
func (r *runner) end(p any) error {
	f, failed := p.(failure)
	if failed {
		r.errs = append(r.errs, f.error)
	}
	for _, c := range slices.Backward(r.cleanups) {
		func() {
			defer func() {
				if f, ok := recover().(failure); ok {
					r.errs = append(r.errs, f.error)
				}
			}()
			c()
		}()
	}
	if p != nil && !failed {
		panic(p)
	}
	return errors.Join(r.errs...)
}
