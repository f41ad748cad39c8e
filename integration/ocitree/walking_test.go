package ocitree

import (
	"io"
	"strings"
	"testing"
)

// What the applier loses, and only with Walking.
func TestWalking(t *testing.T) {
	for _, c := range []struct {
		walking bool
		want    string
	}{{false, "a a/y"}, {true, "a a/x a/y"}} {
		layers := []io.Reader{layer(t, "d a", "f a/x"), layer(t, "f .wh.a", "d a", "f a/y", "d .")}
		tree, notes, err := Flatten(layers, Options{Walking: c.walking})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(tree.Paths()[1:], " "); got != c.want {
			t.Errorf("walking %v: got %q, want %q", c.walking, got, c.want)
		}
		if notes.Implied["."] != c.walking {
			t.Errorf("walking %v: implied root %v", c.walking, notes.Implied["."])
		}
	}
}
