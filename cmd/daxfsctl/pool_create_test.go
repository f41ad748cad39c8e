package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPoolCreate(t *testing.T) {
	s := bareSite(t)
	place := filepath.Join(t.TempDir(), "pool")
	var made struct {
		Pool, UUID string
		Size       int64
	}
	s.json(0, &made, "pool", "create", "--pool", place)
	if made.Pool != place || made.Size != 64<<20 || made.UUID == "" {
		t.Errorf("%+v", made)
	}
	if _, errOut, code := s.ctl("pool", "create", "--pool", place); code != 1 || !strings.Contains(errOut, "--force") {
		t.Errorf("over a pool: %d, %s", code, errOut)
	}
	var st poolStatJSON
	s.json(0, &st, "pool", "stat", "--pool", place)
	if st.UUID != made.UUID || st.Owner != nil || st.State != "clean" {
		t.Errorf("%+v", st)
	}
	wants(t, s.good("pool", "create", "--force", "--pool", place), place+": made a pool of 64.0 MiB")
	s.json(0, &st, "pool", "stat", "--pool", place)
	if st.UUID == made.UUID {
		t.Error("it is the same pool")
	}

	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte(strings.Repeat("something else ", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := s.ctl("pool", "create", "--pool", other); code != 1 || !strings.Contains(errOut, "holds something already") {
		t.Errorf("over something else: %d, %s", code, errOut)
	}
	s.good("pool", "create", "--force", "--pool", other)
	wants(t, s.good("pool", "check", "--data", "--pool", other), "sound")
	// No byte of what was there is left.
	b, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "something") {
		t.Error("what was there is still there")
	}
}

// The owner's pool is nobody else's to make.
func TestPoolCreateOwned(t *testing.T) {
	s := newSite(t)
	for _, args := range [][]string{nil, {"--force"}} {
		_, errOut, code := s.ctl(append([]string{"pool", "create"}, args...)...)
		if code != 1 || !strings.Contains(errOut, "another owner") {
			t.Errorf("%v: %d, %s", args, code, errOut)
		}
	}
}
